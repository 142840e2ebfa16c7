"""How a source is named: the same in configurations and on the command line."""

import re
from typing import get_args

import pytest
import yaml

from cots_model.errors import ConfigError, InputError
from tests.conftest import REPOSITORY
from tests.training.conftest import write_folder
from tests.training.formats.conftest import said
from training.config import DataConfig
from training.data import read_examples
from training.formats.source import OPTIONS, Format, SourceConfig, parse_source


@pytest.mark.parametrize(
    "text", ["photos", "a b.json", "{000..009}.tar", "{a,b}.tar", "x-{0..3}", "{a,b}", "{0..3}"]
)
def test_a_plain_string_is_a_path(text):
    assert parse_source(text) == SourceConfig(path=text)


def test_a_mapping_says_more():
    expected = SourceConfig(path="x.json", format="karpathy", image_root="coco", split="train")
    text = "{format: karpathy, path: x.json, image_root: coco, split: train}"
    assert parse_source(text) == expected
    values = {"path": "x.json", "format": "karpathy", "image_root": "coco", "split": "train"}
    assert DataConfig(train=["a", values]).train == [SourceConfig(path="a"), expected]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{path: x.json, root: y}", "unknown key root"),
        ("{path: x.json, format: cocoa}", "format: Input should be 'auto', 'folder'"),
        ("{image_root: y}", "path is missing"),
        ("{path: x: y}", "cannot be read as a mapping"),
        ("", "path: String should have at least 1 character"),
    ],
)
def test_a_bad_mapping_is_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        parse_source(text)


def test_folders_take_no_keys(tmp_path):
    folder = write_folder(tmp_path / "photos", [("red", "blue")])
    with pytest.raises(ConfigError, match="has no use for split; it takes no keys besides path"):
        read_examples([SourceConfig(path=str(folder), split="train")])
    with pytest.raises(InputError, match="no source has a split 'train'; only Karpathy and"):
        read_examples([str(folder)], split="train")
    given = read_examples([str(folder)], image_root=tmp_path)
    assert said(given) == [("00.png", ("red on blue",))]


def test_given_defaults_do_not_replace_what_a_source_says(read, tmp_path, images):
    read("x.json", [{"image": "a.jpg", "caption": "one"}])
    text = f"{{path: {tmp_path / 'x.json'}, image_root: {images}}}"
    (example,) = read_examples([text], image_root=tmp_path)
    assert example.location.path == str(images / "a.jpg")


def section(heading: str) -> str:
    text = (REPOSITORY / "docs/training.md").read_text("utf-8")
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_the_documented_formats_are_those_there_are():
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| ([^|]*) \|$", section("Data").replace("| |\n", "|  |\n"), re.M
    )
    documented = {name: set(re.findall(r"`(\w+)`", keys)) for name, keys in rows}
    assert documented.pop("format") == {"path"}  # the heading
    assert documented == OPTIONS
    assert set(get_args(Format)) == set(OPTIONS)


def test_the_documented_sources_are_accepted():
    (block,) = re.findall(r"```yaml\n(.*?)```", section("Data"), re.S)
    data = DataConfig(**yaml.safe_load(block)["data"])
    assert [source.format for source in data.train] == ["auto", "auto", "table"]
    assert data.evaluate[0].split == "test"
