"""Urls, through fsspec: what lies there, ranged reads, a time limit on each, and their errors.

`index_builder.protocols` says where credentials come from.
"""

from __future__ import annotations

import functools
import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, cast

from fsspec.caching import BlockCache
from fsspec.utils import glob_translate

from cots_model.errors import InputError
from index_builder.content import MAX_FILE_BYTES, Section, too_large, too_short
from index_builder.location import (
    ContentError,
    Location,
    Stamp,
    lies_in,
    name_of,
    redact,
    scheme_of,
)
from index_builder.protocols import filesystem, within

REQUEST_LIMIT_S = 30.0
LISTING_LIMIT_S = 600.0
_DEEPEST = 100
BLOCK_BYTES = 1024 * 1024
_KEPT_BLOCKS = 16
_PIECE_BYTES = 16 * 1024 * 1024
_SHARD_STAMP_S = 60.0
_MAX_STAMPS = 1024

_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")


@dataclass(frozen=True)
class Listed:
    """One name in a listing.

    Attributes:
        url: whole, as fsspec writes it.
        is_folder: whether it holds others.
        stamp: of a file, if the listing tells when it was written.
    """

    url: str
    is_folder: bool
    stamp: Stamp | None


def canonical(url: str) -> str:
    """The url as listings write it; checks that its protocol can be opened.

    Raises:
        InputError: if it holds a secret, or its protocol is unknown or lacks its package.
    """
    try:
        files = filesystem(url)
    except ContentError as err:
        raise InputError(str(err)) from err
    lowered = scheme_of(url) + url[url.index("://") :]
    return str(files.unstrip_protocol(files._strip_protocol(lowered)))


def look_at(url: str) -> Listed:
    """What lies at a url.

    Raises:
        ContentError: if nothing is there, the server refuses or does not answer, or as
            `canonical`.
    """
    files = filesystem(url)
    info = within(REQUEST_LIMIT_S, url, lambda: files.info(url))
    return Listed(url, info.get("type") == "directory", _stamp(info))


def list_folder(url: str) -> list[Listed]:
    """What lies directly in a folder, by name; raises as `look_at`."""
    files = filesystem(url)
    found = within(LISTING_LIMIT_S, url, lambda: files.ls(url, detail=True))
    listed = [
        Listed(
            str(files.unstrip_protocol(info["name"])),
            info.get("type") == "directory",
            _stamp(info),
        )
        for info in found
    ]
    return sorted(listed, key=lambda entry: entry.url)


def is_pattern(url: str) -> bool:
    """Whether a url may stand for several files; in web addresses `?` begins a query."""
    return any(sign in url for sign in _magic(url))


def matching(pattern: str) -> list[str]:
    """What matches a pattern with `*`, `**`, `?` or `[...]`, sorted; raises as `look_at`.

    The folders are listed one by one, since fsspec's own search leaves out those that it cannot
    list: a store that is down would look empty.
    """
    parts, magic = pattern.split("/"), _magic(pattern)
    first = next(at for at, part in enumerate(parts) if any(sign in part for sign in magic))
    folder, names = "/".join(parts[:first]), parts[first:]
    try:
        fits = re.compile(glob_translate(pattern)).match
    except ValueError as err:
        raise InputError(f"{redact(pattern)} is no pattern ({err}); `**` stands alone") from err
    return sorted(url for url in _below(folder, names) if fits(url))


def _below(folder: str, names: list[str], depth: int = 0) -> Iterator[str]:
    """All that lies in a folder, and in those of its folders whose names may match the first."""
    if depth > _DEEPEST:
        raise InputError(
            f"{redact(folder)} lies {depth} folders below the pattern's first; it may hold itself; "
            "name the folders instead of `**`"
        )
    try:
        entries = list_folder(folder)
    except ContentError as err:
        if err.reason == "missing":
            return
        raise
    first, *rest = names
    for entry in entries:
        url = entry.url.rstrip("/")
        if url == folder.rstrip("/") or name_of(url) in (".", "..") or not lies_in(url, folder):
            continue  # the folder itself, or a link that leads elsewhere
        yield url
        if entry.is_folder and first == "**":
            yield from _below(url, names, depth + 1)
        elif entry.is_folder and rest and fnmatchcase(name_of(url), first):
            yield from _below(url, rest, depth + 1)


def _magic(url: str) -> str:
    return "*[" if scheme_of(url) in ("http", "https") else "*?["


def open_url(location: Location, *, block_bytes: int = BLOCK_BYTES) -> tuple[BinaryIO, Stamp]:
    """Open a url, or one range of it, for reading and seeking.

    Bytes come in ranged requests of whole blocks, of which the last few are kept. Nothing but the
    size and time is asked for before the first read.

    Raises:
        ContentError: as `index_builder.content.open_location`.
    """
    whole = _stamp_of(location)
    offset = location.offset_bytes or 0
    size = whole.size_bytes if location.size_bytes is None else location.size_bytes
    if offset + size > whole.size_bytes:
        raise too_short(location.path)
    view = io.BufferedReader(_Blocks(location.path, offset, size, block_bytes))
    return cast(BinaryIO, view), Stamp(size, whole.mtime_s)


def read_url(location: Location, *, max_bytes: int = MAX_FILE_BYTES) -> tuple[bytes, Stamp]:
    """Read a url, or one range of it: one request up to 16 MiB.

    The time of a shard is asked for once a minute, not for each of its members.

    Raises:
        ContentError: as `index_builder.content.read_location`.
    """
    whole = _stamp_of(location, recent=location.offset_bytes is not None)
    offset = location.offset_bytes or 0
    size = whole.size_bytes if location.size_bytes is None else location.size_bytes
    if size > max_bytes:
        raise too_large(location.path, size, max_bytes)
    if offset + size > whole.size_bytes:
        raise too_short(location.path)
    starts = range(offset, offset + size, _PIECE_BYTES)
    pieces = [_fetch(location.path, at, min(at + _PIECE_BYTES, offset + size)) for at in starts]
    return b"".join(pieces), Stamp(size, whole.mtime_s)


class _Blocks(Section):
    """One range of a url as a file; the last blocks read are kept."""

    def __init__(self, url: str, offset_bytes: int, size_bytes: int, block_bytes: int) -> None:
        super().__init__(cast(BinaryIO, io.BytesIO()), offset_bytes, size_bytes)
        self._url = url
        self._cache = BlockCache(block_bytes, self._block, size_bytes, _KEPT_BLOCKS)

    def _block(self, start: int, end: int) -> bytes:
        return _fetch(self._url, self._offset + start, self._offset + min(end, self._size))

    def _bytes_at(self, at: int, wanted: int) -> bytes:
        return bytes(self._cache._fetch(at, at + wanted))


def _stamp_of(location: Location, *, recent: bool = False) -> Stamp:
    """Size and time of a whole url, checked against the location's root."""
    url = location.path
    if location.root is not None and not lies_in(url, location.root):
        raise ContentError(
            "outside_root", f"{redact(url)} lies outside {redact(location.root)}; build again"
        )
    if recent:
        return _recent_stamp(url, int(time.monotonic() / _SHARD_STAMP_S))
    return _stamp_now(url)


@functools.lru_cache(_MAX_STAMPS)
def _recent_stamp(url: str, minute: int) -> Stamp:
    return _stamp_now(url)


def _stamp_now(url: str) -> Stamp:
    files = filesystem(url)
    info = within(REQUEST_LIMIT_S, url, lambda: files.info(url))
    if info.get("type") == "directory":
        raise ContentError("not_a_file", f"{name_of(url)} is a folder; only files are read")
    if info.get("size") is None:
        why = "its server does not tell how long it is; copy it to a disk or bucket"
        raise ContentError("unreadable", f"{name_of(url)} could not be read: {why}")
    return _stamp(info) or Stamp(int(info["size"]), 0.0)


def _fetch(url: str, start: int, end: int) -> bytes:
    files = filesystem(url)
    data = bytes(within(REQUEST_LIMIT_S, url, lambda: files.cat_file(url, start=start, end=end)))
    if len(data) > end - start:  # a web server that knows no ranges sends all of it
        data = data[start:end]
    if len(data) != end - start:
        raise ContentError("truncated", f"{name_of(url)} ended early; it changed, read it again")
    return data


def _stamp(info: dict[str, Any]) -> Stamp | None:
    """Size and time of an entry, the time in whole seconds: listings and requests round apart."""
    if info.get("type") == "directory" or info.get("size") is None:
        return None
    for key in _TIMES:
        seconds = _seconds(info.get(key))
        if seconds:
            return Stamp(int(info["size"]), seconds)
    return None


def _seconds(value: object) -> float | None:
    if isinstance(value, str):
        try:
            iso = re.match(r"^\d{4}-", value)
            value = datetime.fromisoformat(value) if iso else parsedate_to_datetime(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return float(int(aware.timestamp()))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(int(value))
    return None
