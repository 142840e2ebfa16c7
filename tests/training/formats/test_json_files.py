"""Annotation files in json: each format is known by its content, each fault by its place."""

import json

import pytest

from tests.training.formats.conftest import colours, said

COCO = {
    "info": {},
    "images": [
        {"id": 7, "file_name": "a.jpg", "height": 8},
        {"id": 9, "file_name": "b.jpg"},
        {"id": 8, "file_name": "c.jpg"},
    ],
    "annotations": [
        {"image_id": 9, "id": 1, "caption": "one "},
        {"image_id": 7, "id": 2, "caption": "two, three"},
        {"image_id": 9, "id": 3, "caption": "four"},
    ],
}
MSRVTT = {
    "videos": [
        {"video_id": "video0", "split": "train", "id": 0},
        {"video_id": "video1", "split": "validate", "id": 1},
        {"video_id": "video2", "split": "test", "id": 2},
        {"video_id": "video3", "split": "test", "id": 3},
    ],
    "sentences": [
        {"video_id": f"video{n % 4}", "caption": f"caption {n}", "sen_id": n} for n in range(8)
    ],
}
FROZEN = {
    "info": {},
    "images": [{"id": "video5"}, {"id": "video4"}],
    "annotations": [
        {"image_id": "video5", "caption": "x", "id": 1},
        {"image_id": "video4", "caption": "y", "id": 2},
        {"image_id": "video5", "caption": "z", "id": 3},
    ],
    "type": "captions",
    "licenses": "",
}


@pytest.mark.parametrize("keys", [{}, {"format": "coco"}])
def test_coco_joins_captions_to_pictures(read, keys, caplog):
    examples = read("captions_val.json", COCO, **keys)
    assert said(examples) == [("a.jpg", ("two, three",)), ("b.jpg", ("one", "four"))]
    assert colours(examples) == ["a", "b"]
    assert "1 pictures without a caption" in caplog.text


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_a_list_has_captions_as_strings_or_lists(read, name):
    entries = [
        {"image": "a.jpg", "caption": "one", "image_id": 3},
        {"image": "b.jpg", "caption": ["two", " ", "three"], "image_id": "x"},
        {"image": "a.jpg", "caption": "four"},
        {"image": "c.jpg", "caption": ""},
    ]
    lines = "\n".join(json.dumps(entry) for entry in entries)
    examples = read(name, lines if name.endswith("l") else entries)
    assert said(examples) == [("a.jpg", ("one", "four")), ("b.jpg", ("two", "three"))]
    assert colours(examples) == ["a", "b"]


def test_absolute_names_need_no_image_root(read, images):
    entries = [{"image": str(images / "b.jpg"), "caption": "one"}]
    assert colours(read("list.json", entries, image_root=None)) == ["b"]


def test_videos_are_told_by_their_suffix(read, images):
    entries = [{"video": "m.MP4", "caption": "one"}, {"image": "a.jpg", "caption": "two"}]
    video, picture = read("list.json", entries)
    assert (video.kind, picture.kind) == ("video", "picture")
    assert video.location.path == str(images / "m.MP4")


@pytest.mark.parametrize(
    ("split", "ids"),
    [
        ("train", ["video0"]),
        ("val", ["video1"]),
        ("validate", ["video1"]),
        ("test", ["video2", "video3"]),
    ],
)
def test_msrvtt_has_the_full_split_in_itself(read, images, split, ids):
    examples = read("MSRVTT_data.json", MSRVTT, split=split)
    assert [e.id for e in examples] == ids
    assert {e.kind for e in examples} == {"video"}
    number = int(ids[0][-1])
    assert examples[0].captions == (f"caption {number}", f"caption {number + 4}")
    assert examples[0].location.path == str(images / f"{ids[0]}.mp4")


def test_msrvtt_takes_a_list_of_videos(read, tmp_path):
    (tmp_path / "train.9k.csv").write_text("video_id\nvideo3\nvideo1\n")
    examples = read("m.json", MSRVTT, split_file=tmp_path / "train.9k.csv")
    assert [e.id for e in examples] == ["video1", "video3"]


def test_the_sentences_of_a_list_replace_the_captions(read, tmp_path):
    path = tmp_path / "test.csv"
    path.write_text('key,vid_key,video_id,sentence\nret0,msr2,video2,"a man, running"\n')
    (example,) = read("m.json", MSRVTT, split_file=path)
    assert said([example]) == [("video2", ("a man, running",))]


def test_frozen_in_time_groups_annotations_by_video(read, tmp_path):
    assert said(read("MSR_VTT.json", FROZEN)) == [("video5", ("x", "z")), ("video4", ("y",))]
    path = tmp_path / "val_list.txt"
    path.write_text("video4\n")
    (example,) = read("MSR_VTT.json", FROZEN, split_file=path, suffix=".avi")
    assert example.id == "video4"
    assert example.location.path.endswith("/images/video4.avi")


def test_a_list_that_names_more_than_there_is_is_told(read, error, tmp_path, caplog):
    path = tmp_path / "list.txt"
    path.write_text("video4\nvideo99\n")
    read("m.json", FROZEN, split_file=path)
    assert "m.json has 1 of 2 names" in caplog.text
    path.write_text("video99\n")
    assert "has none of the 1 names of" in error("m.json", FROZEN, split_file=path)
    path.write_text("clip,start\nx,1\n")
    message = error("m.json", FROZEN, split_file=path)
    assert "list.txt, line 1: the columns are clip, start; one of video_id" in message
    path.write_text("")
    assert "names nothing" in error("m.json", FROZEN, split_file=path)


def broken(content: dict, *way: object, value: object = None) -> dict:
    """A copy with one value changed, or left out if it is None."""
    copy = json.loads(json.dumps(content))
    place = copy
    for key in way[:-1]:
        place = place[key]
    if value is None:
        del place[way[-1]]
    else:
        place[way[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (broken(COCO, "images", 1, "id"), "images[1].id is missing; the keys here are: file_name"),
        (
            broken(COCO, "images", 1, "id", value=[2]),
            "images[1].id is [2]; accepted is a string or",
        ),
        (broken(COCO, "images", 2, "file_name"), "images[2].file_name is missing"),
        (broken(COCO, "annotations", 0, "caption", value=5), "annotations[0].caption is 5"),
        (broken(COCO, "annotations", value="x"), 'annotations is "x"; accepted is a list'),
        (broken(FROZEN, "annotations", 1, "image_id"), "annotations[1].image_id is missing"),
        (broken(MSRVTT, "videos", 1, "video_id", value=""), 'videos[1].video_id is ""'),
        (broken(MSRVTT, "sentences", 3, value="x"), 'sentences[3] is "x"; accepted is an object'),
        ([{"image": "a.jpg"}], "[0].caption is missing; the keys here are: image"),
        ([{"caption": "a"}], "[0].image is missing"),
        ([{"image": "a.jpg", "caption": [1]}], "[0].caption[0] is 1; accepted is a string"),
        ([{"image": 4, "caption": "a"}], "[0].image is 4"),
        (["a.jpg"], '[0] is "a.jpg"'),
        ({"pictures": []}, "is in no known format, its top has pictures; accepted are Karpathy's"),
        ("3", "is in no known format"),
        ("{\n\n]", "x.json, line 3: no json"),
        (b"\xff\xfe", "x.json is not UTF-8"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_bad_file_says_where_and_what(error, content, says):
    is_msrvtt = isinstance(content, dict) and "videos" in content
    message = error("x.json", content, split="validate" if is_msrvtt else None)
    assert says in message
    assert "x.json" in message


def test_a_bad_line_is_named(error):
    text = '{"image": "a.jpg", "caption": "x"}\n\n{"image": \n'
    assert "x.jsonl, line 3: no json" in error("x.jsonl", text)


def test_a_format_that_is_named_is_not_guessed(error):
    message = error("x.json", COCO, format="karpathy")
    assert "x.json: images[0].filename is missing" in message


@pytest.mark.parametrize(
    ("content", "keys", "says"),
    [
        (COCO, {"split": "train"}, "is of the format coco, which has no use for split"),
        (COCO, {"suffix": ".avi"}, "it takes image_root, split_file"),
        (
            MSRVTT,
            {},
            "the splits test (2), train (1), validate (1); say which is meant, {path: ..., ",
        ),
        (MSRVTT, {"split": "dev"}, "no split 'dev'; it has ['test', 'train', 'validate']"),
        (MSRVTT, {"caption_column": "x"}, "no use for caption_column"),
        (
            MSRVTT,
            {"split": "test", "image_root": "nowhere"},
            "image_root nowhere is neither a folder nor a tar",
        ),
        (
            MSRVTT,
            {"split": "train", "image_root": None},
            "names pictures without saying where, such as 'video0.mp4'",
        ),
        (MSRVTT, {"split_file": "no.csv"}, "no.csv cannot be read (No such file"),
    ],
)
def test_keys_that_do_not_fit_are_refused(error, content, keys, says):
    assert says in error("x.json", content, **keys)


def test_coco_val2017_has_25014_captions(shared_data, tmp_path):
    from training.data import read_examples

    path = shared_data / "coco_annotations/captions_val2017.json"
    examples = read_examples([str(path)], image_root=tmp_path)
    assert len(examples) == 5_000
    assert sum(len(e.captions) for e in examples) == 25_014
    assert {len(e.captions) for e in examples} == {5, 6, 7}
    assert examples[0].location.path == str(tmp_path / "000000397133.jpg")


def test_flickr8k_karpathy_fits_its_shards(shared_data, tmp_path):
    from training.data import read_examples

    folder = shared_data / "flickr8k"
    named = read_examples([str(folder / "dataset_flickr8k.json")], image_root=tmp_path, split="val")
    packed = read_examples([str(folder / "val-00000.tar")])
    assert len(named) == len(packed) == 1_000
    assert sorted(e.captions for e in named) == sorted(e.captions for e in packed)
