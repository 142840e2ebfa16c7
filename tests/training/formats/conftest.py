"""A folder of pictures, each of a colour of its own, that annotation files name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cots_model.errors import InputError
from tests.training.conftest import two_colours
from training.data import read_examples
from training.example import Example
from training.formats.source import SourceConfig

COLOURS = {"a": "red", "b": "blue", "c": "white", "d": "black"}

Read = Callable[..., list[Example]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in COLOURS.items():
        two_colours(colour, colour, 8).save(folder / f"{name}.jpg", quality=100)
    return folder


@pytest.fixture
def read(tmp_path: Path, images: Path) -> Read:
    """Write a file (an object as json), and read it as a source with these keys."""

    def run(name: str, content: Any, **keys: Any) -> list[Example]:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, "utf-8")
        keys = {"image_root": images} | keys
        return read_examples([SourceConfig(path=str(path), **keys)])

    return run


@pytest.fixture
def error(read: Read) -> Callable[..., str]:
    """The message with which a source is refused."""

    def run(name: str, content: Any, **keys: Any) -> str:
        with pytest.raises(InputError) as caught:
            read(name, content, **keys)
        return str(caught.value)

    return run


def said(examples: list[Example]) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.id, example.captions) for example in examples]


def colours(examples: list[Example]) -> list[str]:
    """Which of the pictures each example opens."""
    names = {(254, 0, 0): "a", (0, 0, 254): "b", (255, 255, 255): "c", (0, 0, 0): "d"}
    return [names[example.picture().getpixel((0, 0))] for example in examples]
