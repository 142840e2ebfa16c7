"""Drawings become shards that training reads."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from training.collect import main
from training.data import read_examples


def save(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (500, 400), colour).save(path)


def collect(kind, folder, shard):
    return CliRunner().invoke(main, [kind, str(folder), str(shard)])


def test_stamps_become_pictures_with_their_english_names(tmp_path):
    save(tmp_path / "animals/cat.png", (255, 0, 0, 0))
    (tmp_path / "animals/cat.txt").write_text("A cat.\nfr.utf8=Un chat.\n")
    save(tmp_path / "animals/cat_mirror.png", "red")
    (tmp_path / "animals/cat_mirror.txt").write_text("A cat.\n")
    save(tmp_path / "animals/nameless.png", "blue")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.txt").write_text("A riddle.\n")
    assert collect("stamps", tmp_path, tmp_path / "out/s.tar").exit_code == 0
    [example] = read_examples([str(tmp_path / "out/s.tar")])
    assert example.captions == ("A cat.",)
    assert example.picture().size == (384, 307)
    assert min(example.picture().getpixel((9, 9))) > 250  # laid over white


def test_emoji_have_all_their_names_and_flags_are_left_out(tmp_path):
    entries = [
        {
            "name": "DOG FACE",
            "short_names": ["dog2", "sled-dog"],
            "category": "Animals & Nature",
            "image": "1.png",
        },
        {"name": "FRANCE", "short_names": ["flag-fr"], "category": "Flags", "image": "2.png"},
        {"name": "GONE", "short_names": ["gone"], "category": "Objects", "image": "3.png"},
    ]
    (tmp_path / "emoji.json").write_text(json.dumps(entries))
    for name in ("1.png", "2.png"):
        save(tmp_path / "img/google/64" / name, "green")
    assert collect("emoji", tmp_path, tmp_path / "e.tar").exit_code == 0
    [example] = read_examples([str(tmp_path / "e.tar")])
    assert example.captions == (
        "dog face",
        *("a dog", "a drawing of a dog", "a picture of a dog"),
        *("a sled dog", "a drawing of a sled dog", "a picture of a sled dog"),
    )


@pytest.mark.parametrize("kind", ["emoji", "stamps"])
def test_folder_without_drawings_is_wrong_usage_and_leaves_no_shard(tmp_path, kind):
    done = collect(kind, tmp_path, tmp_path / "x.tar")
    assert done.exit_code == 2
    assert "unpack the package there" in done.output
    assert not (tmp_path / "x.tar").exists()
