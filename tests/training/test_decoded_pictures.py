"""Decoded pictures on disk: made once, made anew for other contents, broken ones tried again."""

import errno
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cots_model.errors import InputError
from training import decoded_pictures as module
from training.data import read_examples
from training.decoded_pictures import decoded_pictures
from training.example import Example

COLOURS = ("red", "lime", "blue", "black")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (20, 10), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(colour)
    return folder


@pytest.fixture
def decode(photos, tmp_path, monkeypatch):
    """Decodes the photos as they are; what was decoded, and the names of what had to be opened."""
    picture, opened = Example.picture, list[str]()

    def counted(example: Example) -> Image.Image:
        opened.append(example.id)
        return picture(example)

    monkeypatch.setattr(Example, "picture", counted)

    def decode(side=8, **options):
        opened.clear()
        examples = read_examples([str(photos)])
        found = decoded_pictures(examples, side=side, folder=tmp_path / "cache", **options)
        return found, len(opened)

    return decode


def test_a_second_run_decodes_nothing(decode):
    (first, num_first), (second, num_second) = decode(), decode()
    assert (num_first, num_second) == (4, 0)
    assert np.array_equal(first.pixels_MCSS, second.pixels_MCSS)
    assert first.pixels_MCSS[:, :, 3, 3].tolist() == [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [0, 0, 0],
    ]
    assert first.broken == second.broken == frozenset()


def test_other_contents_or_another_side_are_decoded(decode, photos):
    decode()
    assert decode(side=4)[1] == 4
    Image.new("RGB", (20, 10), "white").save(photos / "1.png")
    found, num_opened = decode()
    assert num_opened == 4
    assert found.pixels_MCSS[1].min() == 255


def test_a_broken_picture_is_counted_and_tried_again(decode, photos, monkeypatch, caplog):
    """One that could not be read then, and can be now, though its bytes are the same."""
    read = module.resize
    broken = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(broken[:40])
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        caplog.clear()
        found, num_opened = decode(max_broken_share=0.5)
        assert found.broken == {2}
        assert found.pixels_MCSS[2].max() == 0
        assert "1 of 4 pictures left out" in caplog.text
    assert num_opened == 1
    monkeypatch.setattr(module, "resize", lambda img, *rest: read(img, *rest))
    monkeypatch.setattr(Example, "picture", lambda _: Image.new("RGB", (9, 9), "white"))
    found, _ = decode()
    assert found.broken == frozenset()
    assert found.pixels_MCSS[2].min() == 255
    assert found.pixels_MCSS[1].max(axis=(1, 2)).tolist() == [0, 255, 0]


def test_too_many_broken_ones_end_it_and_leave_nothing_that_looks_finished(
    decode, photos, tmp_path
):
    for number in (1, 2):
        (photos / f"{number}.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(InputError, match="2 of 4 pictures are broken"):
            decode(max_broken_share=0.25)
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_a_full_disk_is_told(decode, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(InputError, match=r"cannot be kept in .*No space.*data\.cache_dir"):
        decode()
    assert not list((tmp_path / "cache").glob("*.partial"))
