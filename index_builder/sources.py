"""What a source yields, and which source a SRC argument means.

A source is read once, in an order that does not change between runs, and yields a `Candidate` for
every picture that may be indexed and a `Skip` for every one that cannot be.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cots_model.errors import InputError
from index_builder.content import ContentError, Location, read_location
from index_builder.items import Json, clean_metadata

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .dib .tif .tiff".split()
)
"""Files with these endings are decoded; a file of another kind under such a name is skipped."""

UNREAD_IMAGE_SUFFIXES = frozenset(
    ".heic .heif .avif .jxl .jp2 .svg .ico .psd .ppm .pgm .tga .dng .cr2 .nef .arw".split()
)
"""Pictures in formats that are not read: skipped and listed, so that nobody misses them silently."""

SIDECAR_SUFFIXES = frozenset({".json", ".txt", ".cls"})
MAX_SIDECAR_BYTES = 1024 * 1024

_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_MAX_SHARDS = 100_000


@dataclass(frozen=True)
class Candidate:
    """A picture to be decoded and embedded.

    Attributes:
        id: the item's id.
        uri: where it is, for people.
        location: where it is, for reading.
        filename: its name with extension, as `--metadata` files may name it.
        metadata: what its sidecars say.
    """

    id: str
    uri: str
    location: Location
    filename: str
    metadata: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Skip:
    """A picture that is left out, as a line of `skipped.jsonl` tells it."""

    id: str
    uri: str
    reason: str
    message: str


@dataclass
class ReaderCounts:
    """What a source met besides pictures.

    Attributes:
        ignored: files that are no pictures, or hidden.
        bad_sidecars: metadata files that could not be read.
        first_bad_sidecar: what was wrong with the first of them.
    """

    ignored: int = 0
    bad_sidecars: int = 0
    first_bad_sidecar: str | None = None


class Source(Protocol):
    """Anything that yields pictures."""

    name: str
    counts: ReaderCounts

    def read(self) -> Iterator[Candidate | Skip]:
        """All pictures, in a fixed order."""
        ...


def open_source(arguments: Sequence[str], *, exclude: Path | None = None) -> Source:
    """The source that SRC means: a folder, or tar shards (files, globs, `{00..09}` or `{a,b}`).

    Args:
        arguments: one folder, or one or more shards or patterns.
        exclude: a folder that is not entered (the gallery being built).

    Raises:
        InputError: if nothing is there, or it is of a kind that cannot be read.
    """
    from index_builder.folder_source import FolderSource
    from index_builder.shard_source import ShardSource

    for argument in arguments:
        if _URL.match(argument):
            raise InputError(f"{argument} is a url; {_ACCEPTED}; download it first")
    if len(arguments) == 1 and Path(arguments[0]).is_dir():
        return FolderSource(Path(arguments[0]), exclude=exclude)
    paths = [path for argument in arguments for path in expand_pattern(argument)]
    for path in paths:
        _check_shard(path)
    return ShardSource(paths)


def expand_pattern(pattern: str) -> list[Path]:
    """The files of a pattern, sorted: `{00..09}` and `{a,b}` first, then `*`, `?` and `[...]`.

    Raises:
        InputError: if one of them is not there.
    """
    paths: list[Path] = []
    for name in _expand_braces(pattern):
        found = [name] if os.path.lexists(name) else sorted(glob.glob(name, recursive=True))
        if not found:
            raise InputError(f"{name} is not there; {_ACCEPTED}")
        paths += [Path(one) for one in found]
    return paths


def has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    """Whether a file name ends in one of `suffixes`, whatever the case."""
    return os.path.splitext(name)[1].lower() in suffixes


def read_sidecar(location: Location, name: str, counts: ReaderCounts) -> dict[str, Json]:
    """Metadata from a file beside a picture; a bad one is counted and gives nothing.

    `.json` must hold an object, which is taken over; `.txt` becomes `caption`, `.cls` `class`.
    """
    try:
        if location.size_bytes is not None and location.size_bytes > MAX_SIDECAR_BYTES:
            raise ValueError(f"over {MAX_SIDECAR_BYTES:,} bytes")
        data, _ = read_location(location)
        return _parse_sidecar(os.path.splitext(name)[1].lower(), data)
    except (ContentError, ValueError, RecursionError) as err:
        counts.bad_sidecars += 1
        counts.first_bad_sidecar = counts.first_bad_sidecar or f"{name}: {err}"
        return {}


_ACCEPTED = "accepted now: a folder of pictures, or tar shards (a file, *.tar or {000..009}.tar)"


def _parse_sidecar(suffix: str, data: bytes) -> dict[str, Json]:
    if len(data) > MAX_SIDECAR_BYTES:
        raise ValueError(f"over {MAX_SIDECAR_BYTES:,} bytes")
    text = data.decode("utf-8-sig").strip()
    if suffix == ".txt":
        return clean_metadata({"caption": text}) if text else {}
    if suffix == ".cls":
        return clean_metadata({"class": int(text) if text.isdigit() else text})
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("a JSON object is needed")
    return clean_metadata(values)


def _expand_braces(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None or os.path.lexists(pattern):
        return [pattern]
    span = _RANGE.match(match[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < _MAX_SHARDS:
            raise InputError(f"{{{match[1]}}} is no range of 1 to {_MAX_SHARDS:,} shards")
        choices = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in _expand_braces(head + choice + tail)]


def _check_shard(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder among several sources; give one folder, or only shards")
    if not path.is_file():
        raise InputError(f"{path} is not a file that can be read; {_ACCEPTED}")
    if path.suffix.lower() != ".tar":
        hint = "; unpack or decompress it first" if ".tar" in path.name or ".tgz" in path.name else ""
        raise InputError(f"{path} is neither a folder nor a .tar file; {_ACCEPTED}{hint}")
