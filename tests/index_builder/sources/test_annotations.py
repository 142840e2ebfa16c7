"""Karpathy's json and COCO captions: pictures with captions, and captions as items."""

import json

import pytest

from cots_model.errors import InputError
from index_builder.content import location_of, read_location
from index_builder.sources.entry import Candidate
from index_builder.sources.open import open_source
from tests.index_builder.conftest import save_picture
from tests.index_builder.sources.reading import entries_of, read, write_tar

KARPATHY = {
    "dataset": "x",
    "images": [
        {
            "filename": name,
            "split": split,
            "imgid": number,
            "sentids": [1, 2],
            "sentences": [{"raw": f"{name} one", "tokens": []}, {"raw": f"{name} two"}],
        }
        for number, (name, split) in enumerate(
            [("a.png", "train"), ("b.png", "val"), ("c.png", "restval")]
        )
    ],
}
COCO = {
    "images": [{"id": 7, "file_name": "7.jpg", "width": 640}, {"id": 8, "file_name": "8.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "a dog"},
        {"image_id": 7, "id": 2, "caption": "two dogs"},
    ],
}


def write(folder, content, name="dataset.json"):
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_pictures_of_a_karpathy_file_have_captions_and_split(tmp_path):
    for name in "abc":
        save_picture(tmp_path / f"images/{name}.png")
    file = write(tmp_path, KARPATHY)
    source = open_source([str(file), str(tmp_path / "images")])
    entries = list(source.read())
    assert [entry.id for entry in entries] == ["a.png", "b.png", "c.png"]
    captions = ["a.png one", "a.png two"]
    assert entries[0].metadata == {"captions": captions, "split": "train", "imgid": 0}
    for entry in entries:
        place = location_of(entry.uri, None, None, source.roots)
        assert read_location(place)[1] == entry.stamp
    beside = write(tmp_path / "images", KARPATHY)
    assert [entry.stamp for entry in entries_of(beside)] == [entry.stamp for entry in entries]


@pytest.mark.parametrize("name", ["http://[x/a.jpg", "/a\0b.jpg", "foo://x/a.jpg"])
def test_a_picture_whose_name_leads_nowhere_is_skipped(tmp_path, name):
    save_picture(tmp_path / "a.jpg")
    images = [{"filename": one, "sentences": []} for one in ("a.jpg", name)]
    images.append({"filename": "b.jpg", "filepath": "\ud800", "sentences": []})
    (tmp_path / "d.json").write_text(json.dumps({"images": images}))
    candidates, skips, _ = read(tmp_path / "d.json")
    assert list(candidates) == ["a.jpg"]
    assert set(skips) == {name, "b.jpg"}


def test_splits_are_chosen_behind_the_name(tmp_path):
    file = write(tmp_path, KARPATHY)
    assert [entry.id for entry in entries_of(f"{file}#val")] == ["b.png"]
    assert [entry.id for entry in entries_of(f"{file}#train,restval")] == ["a.png", "c.png"]
    with pytest.raises(InputError, match=r"no split 'test'; it has restval \(1\), train \(1\)"):
        entries_of(f"{file}#test")
    with pytest.raises(InputError, match="no splits"):
        entries_of(f"{write(tmp_path, [{'path': 'a.png'}], 'list.json')}#val")


def test_pictures_lie_in_shards_or_in_the_folders_that_coco_names(tmp_path):
    content = {"images": [{**image, "filepath": "val2014"} for image in KARPATHY["images"]]}
    file = write(tmp_path, content)
    shard = write_tar(tmp_path / "s.tar", [("val2014/a.png", b"A"), ("b.png", b"B")])
    found = entries_of(file, shard)
    assert [read_location(entry.location)[0] for entry in found[:2]] == [b"A", b"B"]
    assert [entry.id for entry in found] == ["a.png", "b.png", "c.png"]
    assert found[2].reason == "missing"
    save_picture(tmp_path / "root/val2014/a.png")
    save_picture(tmp_path / "root/b.png")
    first, second, third = entries_of(file, tmp_path / "root")
    assert first.location.path.endswith("/root/val2014/a.png")
    assert second.location.path.endswith("/root/b.png")
    assert third.stamp is None


def test_captions_of_annotation_files_are_texts(tmp_path):
    source = open_source([f"{write(tmp_path, KARPATHY)}#val"], modality="text")
    entries = list(source.read())
    assert [(entry.id, entry.text) for entry in entries] == [
        ("b.png#0", "b.png one"),
        ("b.png#1", "b.png two"),
    ]
    assert entries[0].metadata == {"split": "val", "imgid": 1}
    assert source.roots == (str(tmp_path / "dataset.json"),)
    coco = write(tmp_path, COCO, "captions.json")
    assert [entry.id for entry in entries_of(coco, modality="text")] == ["7.jpg#0", "7.jpg#1"]
    first, second = entries_of(coco)
    assert first.metadata == {"captions": ["a dog", "two dogs"], "width": 640}
    assert second.metadata == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "its top has"),
        ({"videos": []}, "its top has videos"),
        ({"images": [{"name": "a"}]}, r"images\[0\] has name"),
        ({"images": [{"filename": "a", "sentences": 3}]}, r"images\[0\]\.sentences is 3"),
        ({"images": [{"filename": "a", "sentences": [{}]}]}, r"sentences\[0\]\.raw is None"),
        ({"images": [{"filename": "a", "sentences": []}, 5]}, r"images\[1\] is 5"),
        ({"images": COCO["images"], "annotations": [{"image_id": 7}]}, r"annotations\[0\]\.cap"),
        (5, "no keys"),
    ],
)
def test_a_bad_annotation_file_says_where_and_what(tmp_path, content, said):
    with pytest.raises(InputError, match=said) as caught:
        entries_of(write(tmp_path, content))
    assert "dataset.json" in str(caught.value)
    assert "accepted" in str(caught.value)


def test_flickr8k_gives_a_thousand_pictures_and_five_thousand_texts(shared_data):
    file, shard = shared_data / "flickr8k/dataset_flickr8k.json", "flickr8k/val-00000.tar"
    val = entries_of(f"{file}#val", shared_data / shard)
    assert len(val) == 1000
    assert all(
        isinstance(entry, Candidate) and len(entry.metadata["captions"]) == 5 for entry in val
    )
    assert read_location(val[0].location)[0][:2] == b"\xff\xd8"
    everything, skips, _ = read(file, shared_data / shard)
    assert (len(everything), set(skips.values()), len(skips)) == (1000, {"missing"}, 6000)
    by_name = read(f"{file}#val", modality="text")[0]
    by_shard = read(shared_data / shard, modality="text")[0]
    assert len(by_name) == len(by_shard) == 5000
    plain = {key.replace(".jpg#", "#"): one.text.split() for key, one in by_name.items()}
    assert plain == {key: one.text.split() for key, one in by_shard.items()}


def test_coco_captions_are_25014_texts(shared_data):
    file = shared_data / "coco_annotations/captions_val2017.json"
    assert len(read(file, modality="text")[0]) == 25_014


def test_captions_of_the_clips_are_a_manifest(shared_data):
    file = shared_data / "videos/captions.json"
    clips, skips, _ = read(file, modality="video")
    assert (len(clips), skips) == (24, {})
    assert all(one.metadata["caption"] and one.stamp for one in clips.values())
    texts = read(file, modality="text")[0]
    assert {one.metadata["video"] for one in texts.values()} == set(clips)
