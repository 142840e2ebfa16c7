"""From an argument to the places it means: `file://`, `{00..09}`, `{a,b}`, `*`, `?`, `[...]`."""

from __future__ import annotations

import glob
import os
import re

from cots_model.errors import InputError
from index_builder.location import ContentError, is_url, path_of_uri, redact, scheme_of

_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_MAX_FILES = 100_000


def expand_pattern(pattern: str, *, accepted: str = "accepted: files") -> list[str]:
    """The files or folders of a pattern, sorted within each choice of its braces.

    Local ones are made absolute; whether a url without `*` is there is not asked.

    Args:
        pattern: a path or url.
        accepted: what the error says is accepted.

    Raises:
        InputError: if one of them is not there, or a url cannot be opened.
    """
    if is_url(pattern) and scheme_of(pattern) in ("file", "local"):
        raw = pattern[pattern.index("://") + 3 :]  # as fsspec takes it; else as a uri is written
        is_there = any(_matching_files(name) for name in _expand_braces(raw))
        pattern = raw if is_there else _path(pattern)
    places: list[str] = []
    for name in _expand_braces(pattern):
        found = _matching_urls(name) if is_url(name) else _matching_files(name)
        if not found:
            raise InputError(f"{redact(name)} is not there; {accepted}")
        places += found
    return places


def _path(uri: str) -> str:
    try:
        return path_of_uri("file" + uri[uri.index("://") :])
    except ContentError as err:
        raise InputError(str(err)) from err


def _matching_files(name: str) -> list[str]:
    found = [name] if os.path.lexists(name) else sorted(glob.glob(name, recursive=True))
    return [os.path.abspath(one) for one in found]


def _matching_urls(name: str) -> list[str]:
    from index_builder.remote import canonical, is_pattern, matching

    url = canonical(name)
    found = matching(url) if is_pattern(url) else []
    return found if found or "*" in url else [url]  # a key may have ? and [] in its name


def _expand_braces(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None or (not is_url(pattern) and os.path.lexists(pattern)):
        return [pattern]
    span = _RANGE.match(match[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < _MAX_FILES:
            raise InputError(f"{{{match[1]}}} is no range of 1 to {_MAX_FILES:,} files")
        choices = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in _expand_braces(head + choice + tail)]
