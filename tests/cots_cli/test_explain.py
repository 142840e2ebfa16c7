"""`cots explain` as users call it."""

import json

import pytest
from PIL import Image

from cots_cli.main import run
from tests.cots_cli.conftest import save_noise


@pytest.fixture
def args(tiny_checkpoint, tmp_path) -> list[str]:
    save_noise(tmp_path / "photo.jpg", 0)
    checkpoint = ["--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    return [
        "explain",
        "--image",
        str(tmp_path / "photo.jpg"),
        "--out",
        str(tmp_path / "m.png"),
        *checkpoint,
    ]


def test_maps_beside_the_picture(args, tmp_path, capsys):
    assert run([*args, "red dog", "a man", "--json", "--whole"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["text"] for one in found] == ["red dog", "a man"]
    for one in found:
        assert [word["word"] for word in one["words"]] == one["text"].split()
        assert sum(word["share"] for word in one["words"]) == pytest.approx(1)
        assert min(map(min, one["patches"])) >= 0
        assert one["maps"] == []
    with Image.open(tmp_path / "m.png") as sheet, Image.open(tmp_path / "photo.jpg") as photo:
        assert sheet.width >= 3 * photo.width * 320 // photo.height
        assert len(sheet.getcolors(10**6)) > 1000
    assert run([*args, "red dog", "caf\udce9"]) == 0
    assert "maps in" in capsys.readouterr().out


def test_each_word_has_a_map_of_its_own(args, tmp_path, capsys):
    assert run([*args, "red dog, runs", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert [one["word"] for one in found["maps"]] == ["red", "dog", "runs"]
    assert [(one["start"], one["end"]) for one in found["maps"]] == [(0, 3), (4, 7), (9, 13)]
    for one in found["maps"]:
        levels = [level for row in one["map"] for level in row]
        assert (min(levels), max(levels)) == (0, 1)
    with Image.open(tmp_path / "m.png") as sheet:
        assert sheet.width > 5 * 220  # the photo, the text and three words
        width, height = sheet.size
    assert run([*args, "red dog, runs in the blue snow"]) == 0
    with Image.open(tmp_path / "m.png") as sheet:
        assert sheet.width == width
        assert sheet.height > 1.8 * height
    assert run([*args, "dog"]) == 0
    with Image.open(tmp_path / "m.png") as sheet:
        assert sheet.width < 4 * 440  # one word is the text


def test_a_panorama_makes_no_endless_sheet(args, tmp_path):
    Image.new("RGB", (4000, 2), "red").save(tmp_path / "photo.jpg")
    assert run([*args, "red dog", "--whole"]) == 0
    with Image.open(tmp_path / "m.png") as sheet:
        assert sheet.width < 2100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--out", "maps.jpg", "a"], "ends in .png"),
        (["  "], "a text is empty"),
        (["a", "--start-layer", "9"], "image tower has 2 layers"),
        (["a", "--text-start-layer", "9"], "text tower has 2 layers"),
        (["--out", "no/such/folder/maps.png", "a"], "there is no folder no/such/folder"),
        (["--out", "/proc/maps.png", "a"], "--out /proc/maps.png cannot be written"),
    ],
)
def test_what_cannot_be_mapped_is_said(args, capsys, change, message):
    assert run([*args, *change]) == 2
    assert message in capsys.readouterr().err
