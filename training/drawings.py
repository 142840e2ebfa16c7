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
from typing import Literal
from xml.etree import ElementTree

from PIL import Image

from cots_model.errors import ImageError, InputError
from cots_model.images import decode_image

log = logging.getLogger(__name__)

AskedBy = Literal["names", "label", "keywords"]

_OPENINGS = ("a", "a drawing of a", "a picture of a")
_VARIATION = "FE0F"
_CODE_POINTS = re.compile(r"[0-9A-Fa-f]{2,}(-[0-9A-Fa-f]{2,})*")
_EMOJI_SUFFIXES = (".svg", ".webp", ".png")
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
    """What an emoji is called in the Unicode locale data.

    Attributes:
        label: its name, such as `cat face`.
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


def read_emoji(
    folder: Path, names: dict[str, EmojiName], asked_by: AskedBy = "names"
) -> Iterator[Drawing]:
    """The emoji of one vendor, those with a name.

    Args:
        folder: an unpacked emoji-datasource-VENDOR (`emoji.json`, `img/VENDOR/64/*.png`), or any
            with files named by code points, such as `1f468-200d-1f33e.svg` (or `.webp`, `.png`).
        names: of emoji.
        asked_by: what becomes their captions: `names` for sentences with all they are called and
            their keywords, `label` or `keywords` for these alone.

    Raises:
        InputError: for SVG files, if what draws them is not installed.
    """
    found = _emoji_images(folder) if (folder / "emoji.json").is_file() else _emoji_files(folder)
    for codes, path, also in found:
        name = names.get(codes)
        if name is None:
            continue
        captions = [name.label] if asked_by == "label" else list(name.keywords)
        if asked_by == "names":
            called = [name.label, *also]
            sentences = [f"{opening} {text}" for text in called for opening in _OPENINGS]
            captions = [*sentences, name.label, *captions]
        if captions:
            read = draw_svg if path.suffix == ".svg" else decode_image
            yield Drawing(path.name, partial(read, path), list(dict.fromkeys(captions)))


def _emoji_images(folder: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Code points, picture and short names of each entry that has a picture."""
    for entry in json.loads((folder / "emoji.json").read_bytes()):
        path = next(folder.glob(f"img/*/64/{entry['image']}"), None)
        if path is not None:
            yield _codes(entry["unified"]), path, [_readable(text) for text in entry["short_names"]]


def _emoji_files(folder: Path) -> Iterator[tuple[str, Path, list[str]]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in _EMOJI_SUFFIXES and _CODE_POINTS.fullmatch(path.stem):
            yield _codes(path.stem), path, []


def draw_svg(path: Path) -> Image.Image:
    """Draw a file on white, 256 pixels a side.

    Raises:
        ImageError: if it is broken.
        InputError: if `resvg-py` is not installed.
    """
    try:
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError as err:
        raise InputError(
            f"{err.name} is not installed; pip install 'cots-retrieval[demo]'"
        ) from err
    try:
        png = svg_to_bytes(
            svg_string=path.read_text("utf-8"),
            width=_SIDE_PX,
            height=_SIDE_PX,
            background="#ffffff",
            skip_system_fonts=True,
        )
    except ValueError as err:
        raise ImageError("damaged", f"{path.name}: {err}") from err
    return decode_image(bytes(png))


def read_clipart(folder: Path) -> Iterator[Drawing]:
    """Open Clip Art: `png/GROUP/…/name.png`, whose titles are in `svg/GROUP/…/name.svg`.

    Of its groups those that show things; pictures titled by their collection's name are left out.
    """
    svg = next(iter(sorted(folder.rglob("svg/animals"))), folder / "svg/animals").parent
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
