"""What a source lists.

A source is read once, in an order that does not change between runs, and yields a `Candidate` for
everything that may be indexed and a `Skip` for everything that cannot be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from index_builder.items import Json
from index_builder.location import Location, Stamp

Unit = Literal["file", "line"]

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"]
)
"""Files with these endings are decoded; a file of another kind under such a name is skipped."""

UNREAD_IMAGE_SUFFIXES = frozenset(
    [
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".jp2",
        ".svg",
        ".ico",
        ".psd",
        ".ppm",
        ".pgm",
        ".tga",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
    ]
)
"""Pictures in formats that are not read: skipped and listed, so that nobody misses them."""


@dataclass(frozen=True)
class Candidate:
    """Something to be embedded: a picture, a video or a text.

    Attributes:
        id: the item's id.
        uri: where it is, for people.
        location: where its bytes are; of a text, the file that it stands in.
        filename: its name with extension, as `--metadata` files may name it.
        metadata: what its sidecars or its row say.
        stamp: its size and time as listed; `None` where listing does not tell them.
        text: the text itself; `None` for pictures and videos.
    """

    id: str
    uri: str
    location: Location
    filename: str
    metadata: dict[str, Json] = field(default_factory=dict)
    stamp: Stamp | None = None
    text: str | None = None


@dataclass(frozen=True)
class Skip:
    """Something that is left out, as a line of `skipped.jsonl` tells it."""

    id: str
    uri: str
    reason: str
    message: str


@dataclass
class ReaderCounts:
    """What a source met besides its items.

    Attributes:
        ignored: files of other kinds, or hidden; empty lines of a text file.
        unit: what these are.
        bad_sidecars: metadata files that could not be read.
        first_bad_sidecar: what was wrong with the first of them.
    """

    ignored: int = 0
    unit: Unit = "file"
    bad_sidecars: int = 0
    first_bad_sidecar: str | None = None


class Source(Protocol):
    """Anything that lists what may be indexed.

    Attributes:
        name: what was named as SRC, absolute, for people and the manifest.
        roots: absolute folders, files or urls; every original lies in or under one of them.
        counts: what was met besides.
    """

    name: str
    counts: ReaderCounts

    @property
    def roots(self) -> tuple[str, ...]:
        """Where the originals lie; content is only ever served from inside."""
        ...

    def read(self) -> Iterator[Candidate | Skip]:
        """All entries, in a fixed order."""
        ...


def has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    """Whether a file name ends in one of `suffixes`, whatever the case."""
    return os.path.splitext(name)[1].lower() in suffixes
