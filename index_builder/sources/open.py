"""Which source a SRC argument means: a folder, or tar shards by name or pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cots_model.errors import InputError
from index_builder.sources.entry import Source
from index_builder.sources.folder import FolderSource
from index_builder.sources.shards import ShardSource

_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_MAX_SHARDS = 100_000
_ACCEPTED = "accepted: a folder of pictures, or tar shards (a file, *.tar or {000..009}.tar)"


def open_source(arguments: Sequence[str], *, exclude: Path | None = None) -> Source:
    """The source that SRC means: a folder, or tar shards (files, globs, `{00..09}` or `{a,b}`).

    Args:
        arguments: one folder, or one or more shards or patterns.
        exclude: a folder that is not entered (the gallery being built).

    Raises:
        InputError: if nothing is there, or it is of a kind that cannot be read.
    """
    for argument in arguments:
        if _URL.match(argument):
            raise InputError(f"{argument} is a url; {_ACCEPTED}; download it first")
    source: Source
    if len(arguments) == 1 and Path(arguments[0]).is_dir():
        source = FolderSource(Path(arguments[0]), exclude=exclude)
    else:
        paths = [path for argument in arguments for path in expand_pattern(argument)]
        for path in paths:
            _check_shard(path)
        source = ShardSource(paths)
    _check_name(source.name)
    return source


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


def _check_name(name: str) -> None:
    """A manifest records where its items come from, and can only do so in UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as err:
        raise InputError(f"the path {name!a} is not valid UTF-8; rename it") from err


def _check_shard(path: Path) -> None:
    if path.is_dir():
        raise InputError(
            f"{path} is a folder among several sources; give one folder, or only shards"
        )
    if not path.is_file():
        raise InputError(f"{path} is not a file that can be read; {_ACCEPTED}")
    if path.suffix.lower() != ".tar":
        hint = (
            "; unpack or decompress it first" if ".tar" in path.name or ".tgz" in path.name else ""
        )
        raise InputError(f"{path} is neither a folder nor a .tar file; {_ACCEPTED}{hint}")
