"""Pictures with captions from every source, and helpful errors."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cots_model.errors import InputError
from tests.training.conftest import png, two_colours, write_folder, write_tar
from training.data import read_examples
from training.formats.source import SourceConfig
from training.trainer import train


def test_tar_gives_captions_of_json_and_txt(tmp_path):
    members = [
        ("a.png", png(two_colours("red", "blue"))),
        ("a.json", json.dumps({"captions": [" one ", "two", "", 3, "two"]}).encode()),
        ("b.png", png(two_colours("blue", "red"))),
        ("b.json", b'{"caption": "three", "url": "x"}'),
        ("c.png", png(two_colours("white", "black"))),
        ("c.txt", b"four\n"),
    ]
    examples = read_examples([str(write_tar(tmp_path / "a.tar", members))])
    assert [e.captions for e in examples] == [("one", "two", "two"), ("three",), ("four",)]
    for example, img in zip(examples, members[::2], strict=True):
        assert png(example.picture()) == img[1]


def test_folder_gives_captions_of_sidecars(tmp_path):
    folder = write_folder(tmp_path / "photos", [("red", "blue"), ("blue", "red")])
    (folder / "01.txt").unlink()
    (folder / "01.json").write_text('{"captions": ["x", "y"]}')
    examples = read_examples([str(folder)])
    assert [(e.id, e.captions) for e in examples] == [
        ("00.png", ("red on blue",)),
        ("01.png", ("x", "y")),
    ]
    pixels = np.asarray(examples[0].picture())
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_sources_are_read_in_order(shard, tmp_path):
    folder = write_folder(tmp_path / "photos", [("red", "blue")])
    examples = read_examples([str(folder), str(shard)])
    assert examples[0].id == "00.png"
    assert examples[1:] == read_examples([str(shard)])
    assert len(examples) == 33


def test_samples_without_a_caption_are_left_out_and_counted(tmp_path, caplog):
    folder = write_folder(tmp_path / "photos", [("red", "blue"), ("blue", "red")])
    (folder / "00.txt").unlink()
    (folder / "02.txt").write_text("no picture of this name")
    assert [e.id for e in read_examples([str(folder)])] == ["01.png"]
    assert "1 samples without picture or caption" in caplog.text


def test_sources_without_any_caption_are_refused(tmp_path):
    folder = write_folder(tmp_path / "photos", [("red", "blue")])
    (folder / "00.txt").write_text("  \n")
    with pytest.raises(InputError, match="photos has no picture with a caption; a sample needs"):
        read_examples([str(folder)])


def test_missing_sources_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.tar"):
        read_examples([str(tmp_path / "nowhere.tar")])


def entry(name: str, split: str, *captions: str, **more: object) -> dict[str, object]:
    sentences = [{"raw": caption} for caption in captions]
    return {"filename": name, "split": split, "sentences": sentences, **more}


@pytest.fixture
def karpathy(tmp_path) -> Path:
    for folder in ("", "val2014"):
        (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
    two_colours("red", "blue").save(tmp_path / "images/a.png")
    two_colours("blue", "red").save(tmp_path / "images/val2014/b.png")
    entries = [
        entry("a.png", "train", "one", "two"),
        entry("b.png", "restval", "three", filepath="val2014", cocoid=7),
        entry("c.png", "val", "four"),
        entry("d.png", "test", "five", "six", "seven"),
        entry("e.png", "test", " "),
    ]
    path = tmp_path / "dataset_x.json"
    path.write_text(json.dumps({"dataset": "x", "images": entries}))
    return path


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["a.png", "b.png"]),
        ("restval", ["b.png"]),
        ("val", ["c.png"]),
        ("test", ["d.png"]),
    ],
)
def test_karpathy_splits(karpathy, split, names):
    root = karpathy.parent / "images"
    examples = read_examples([str(karpathy)], image_root=root, split=split)
    assert [e.id for e in examples] == names


def test_karpathy_finds_pictures_with_and_without_filepath(karpathy):
    root = karpathy.parent / "images"
    plain, nested = read_examples([str(karpathy)], image_root=root, split="train")
    assert plain.captions == ("one", "two")
    assert plain.picture().getpixel((0, 0)) == (255, 0, 0)
    assert nested.picture().getpixel((0, 0)) == (0, 0, 255)


def test_karpathy_names_its_splits_when_asked_for_another(karpathy):
    with pytest.raises(InputError, match=r"no split 'tests'; it has \['restval', 'test', 'train'"):
        read_examples([str(karpathy)], image_root=karpathy.parent, split="tests")


def test_karpathy_needs_an_image_root(karpathy):
    with pytest.raises(InputError, match="image_root: "):
        read_examples([str(karpathy)], split="val")


@pytest.mark.parametrize("for_training", [True, False])
def test_karpathy_splits_are_never_taken_together(karpathy, for_training):
    """Test pictures would enter training, and nothing would say so."""
    usual = "train" if for_training else "test"
    says = rf"restval \(1\), test \(2\), train \(1\), val \(1\); say.*split: {usual}\}}"
    with pytest.raises(InputError, match=says) as caught:
        read_examples([str(karpathy)], image_root=karpathy.parent, for_training=for_training)
    assert ("--split test" in str(caught.value)) is not for_training


def test_a_single_split_can_be_scored_but_training_must_name_it(karpathy):
    root = karpathy.parent / "images"
    content = json.loads(karpathy.read_text())
    content["images"] = [image for image in content["images"] if image["split"] == "test"]
    karpathy.write_text(json.dumps(content))
    (scored,) = read_examples([str(karpathy)], image_root=root)
    assert scored.id == "d.png"
    with pytest.raises(InputError, match=r"the split test \(2\); say which.*split: NAME\}"):
        read_examples([str(karpathy)], image_root=root, for_training=True)
    (chosen,) = read_examples([str(karpathy)], image_root=root, split="test", for_training=True)
    assert chosen == scored


def test_a_list_of_pictures_says_as_much_as_a_split(karpathy):
    names = karpathy.parent / "mine.txt"
    names.write_text("b.png\na.png\n")
    source = SourceConfig(path=str(karpathy), image_root=karpathy.parent, split_file=names)
    examples = read_examples([source], for_training=True)
    assert [e.id for e in examples] == ["a.png", "b.png"]


def test_a_karpathy_file_without_splits_is_taken_whole(karpathy):
    content = json.loads(karpathy.read_text())
    for image in content["images"]:
        del image["split"]
    karpathy.write_text(json.dumps(content))
    assert len(read_examples([str(karpathy)], image_root=karpathy.parent, for_training=True)) == 4
    content["images"][0]["split"] = "test"
    karpathy.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the splits none \(4\), test \(1\)"):
        read_examples([str(karpathy)], image_root=karpathy.parent)


def test_runs_and_streams_refuse_files_whose_split_is_not_chosen(karpathy, configure):
    source = {"path": str(karpathy), "image_root": str(karpathy.parent / "images")}
    says = "holds the splits restval"
    for stream in (False, True):
        with pytest.raises(InputError, match=says):
            train(configure(data={"train": [source], "stream": stream}))
    data = {"train": [source | {"split": "train"}], "evaluate": [source]}
    with pytest.raises(InputError, match=says):
        train(configure(data=data, batch_size=1))


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[]",
        "{}",
        '{"images": [{}]}',
        '{"images": [{"filename": "a"}]}',
        '{"images": ["a.png"]}',
        '{"images": [{"filename": "a", "split": "test", "sentences": ["raw"]}]}',
        '{"images": [{"filename": 1, "split": "test", "sentences": []}]}',
        '{"images": [{"filename": "a", "split": null, "sentences": []}]}',
    ],
)
def test_karpathy_says_what_a_foreign_file_lacks(tmp_path, text):
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"captions\.json"):
        read_examples([str(path)], image_root=tmp_path, split="test")


def test_karpathy_refuses_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no\.json cannot be read \(No such file"):
        read_examples([str(tmp_path / "no.json")], image_root=tmp_path)


def test_bad_pictures_are_named(karpathy):
    root = karpathy.parent / "images"
    (root / "a.png").write_bytes(b"no picture")
    broken, _ = read_examples([str(karpathy)], image_root=root, split="train")
    with pytest.raises(
        InputError, match=rf"picture a\.png in {re.escape(str(root))}.*known format"
    ):
        broken.picture()
    (gone,) = read_examples([str(karpathy)], image_root=root, split="val")
    with pytest.raises(InputError, match=r"picture c\.png in .*leave it out"):
        gone.picture()
