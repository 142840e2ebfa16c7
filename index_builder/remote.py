"""Urls, through fsspec: what lies there, ranged reads, a time limit on each, and their errors.

Credentials and endpoints come from fsspec's own settings and the protocol's environment
(`FSSPEC_S3_ENDPOINT_URL`, `AWS_*`), never from a url, and no message repeats them.
"""

from __future__ import annotations

import io
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.caching import BlockCache
from fsspec.registry import known_implementations

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
    url_problem,
)

T = TypeVar("T")

REQUEST_LIMIT_S = 30.0
LISTING_LIMIT_S = 600.0
BLOCK_BYTES = 1024 * 1024
_KEPT_BLOCKS = 16
_PIECE_BYTES = 16 * 1024 * 1024
_SHARD_STAMP_S = 60.0
_MAX_STAMPS = 1024

_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "http": "aiohttp requests",
    "https": "aiohttp requests",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "oci": "ocifs",
    "oss": "ossfs",
    "webdav": "webdav4",
    "github": "requests",
}


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
    files = _filesystem(url)
    return str(files.unstrip_protocol(files._strip_protocol(url)))


def look_at(url: str) -> Listed:
    """What lies at a url.

    Raises:
        ContentError: if nothing is there, or the server refuses or does not answer.
        InputError: as `canonical`.
    """
    files = _filesystem(url)
    info = _within(REQUEST_LIMIT_S, url, lambda: files.info(url))
    return Listed(url, info.get("type") == "directory", _stamp(info))


def list_folder(url: str) -> list[Listed]:
    """What lies directly in a folder, by name; raises as `look_at`."""
    files = _filesystem(url)
    found = _within(LISTING_LIMIT_S, url, lambda: files.ls(url, detail=True))
    listed = [
        Listed(
            str(files.unstrip_protocol(info["name"])),
            info.get("type") == "directory",
            _stamp(info),
        )
        for info in found
    ]
    return sorted(listed, key=lambda entry: entry.url)


def matching(pattern: str) -> list[str]:
    """The files that match a pattern with `*`, `?` or `[...]`, sorted; raises as `look_at`."""
    files = _filesystem(pattern)
    found = _within(LISTING_LIMIT_S, pattern, lambda: files.glob(pattern))
    return sorted(str(files.unstrip_protocol(name)) for name in found)


def open_url(location: Location, *, block_bytes: int = BLOCK_BYTES) -> tuple[BinaryIO, Stamp]:
    """Open a url, or one range of it, for reading and seeking.

    Bytes come in ranged requests of whole blocks, of which the last few are kept. Nothing but the
    size and time is asked for before the first read.

    Raises:
        ContentError, InputError: as `index_builder.content.open_location`.
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
        ContentError, InputError: as `index_builder.content.read_location`.
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


_recent_stamps: dict[str, tuple[float, Stamp]] = {}


def _stamp_of(location: Location, *, recent: bool = False) -> Stamp:
    """Size and time of a whole url, checked against the location's root."""
    url = location.path
    if location.root is not None and not lies_in(url, location.root):
        raise ContentError(
            "outside_root", f"{redact(url)} lies outside {redact(location.root)}; build again"
        )
    asked_s, stamp = _recent_stamps.get(url, (0.0, None))
    if recent and stamp is not None and time.monotonic() - asked_s < _SHARD_STAMP_S:
        return stamp
    files = _filesystem(url)
    info = _within(REQUEST_LIMIT_S, url, lambda: files.info(url))
    if info.get("type") == "directory":
        raise ContentError("not_a_file", f"{name_of(url)} is a folder; only files are read")
    if info.get("size") is None:
        why = "its server does not tell how long it is; copy it to a disk or bucket"
        raise ContentError("unreadable", f"{name_of(url)} could not be read: {why}")
    stamp = _stamp(info) or Stamp(int(info["size"]), 0.0)
    if recent:
        if len(_recent_stamps) >= _MAX_STAMPS:
            _recent_stamps.clear()
        _recent_stamps[url] = (time.monotonic(), stamp)
    return stamp


def _fetch(url: str, start: int, end: int) -> bytes:
    files = _filesystem(url)
    data = bytes(_within(REQUEST_LIMIT_S, url, lambda: files.cat_file(url, start=start, end=end)))
    if len(data) > end - start:  # a web server that knows no ranges sends all of it
        data = data[start:end]
    if len(data) != end - start:
        raise ContentError("truncated", f"{name_of(url)} ended early; it changed, read it again")
    return data


def _filesystem(url: str) -> Any:
    problem = url_problem(url)
    if problem is not None:
        raise InputError(f"{redact(url)} {problem}")
    scheme = scheme_of(url)
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except (ImportError, ValueError) as err:
        package = _PACKAGES.get(scheme)
        known = known_implementations.get(scheme)
        if package is None and known is None:
            raise InputError(
                f"{redact(url)} has the protocol {scheme}, which fsspec does not know; accepted "
                "are s3, gs, az, http, https, file and others that it knows"
            ) from err
        cure = f"pip install {package}" if package else str(known["err"] if known else err)
        raise InputError(f"{scheme}:// needs a package that is not installed: {cure}") from err
    except Exception as err:
        raise _explain(err, url) from err


def _within(limit_s: float, url: str, call: Callable[[], T]) -> T:
    """Make a call that may hang; what hangs is left behind in a thread that ends with us."""
    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as err:  # noqa: BLE001 - it belongs to the thread that waits
            outcome.put((None, err))

    threading.Thread(target=run, daemon=True, name="cots-url").start()
    try:
        value, error = outcome.get(timeout=limit_s)
    except queue.Empty:
        raise _too_slow(url, limit_s) from None
    if isinstance(error, Exception):
        raise _explain(error, url) from error
    if error is not None:
        raise error
    return cast(T, value)


def _explain(err: Exception, url: str) -> ContentError:
    name = redact(url)
    if isinstance(err, ContentError):
        return err
    if isinstance(err, TimeoutError):
        return _too_slow(url, None)
    if isinstance(err, FileNotFoundError):
        hint = "put it back or build again"
        if scheme_of(url) == "memory":
            hint = "memory:// is seen by the process that wrote it alone"
        return ContentError("missing", f"{name} is not there; {hint}")
    if isinstance(err, PermissionError):
        why = "access denied; check the credentials and their rights"
        return ContentError("unreadable", f"{name} could not be read ({why})")
    said = " ".join(redact(f"{type(err).__name__}: {err}").split())[:300]
    why = f"{said}; check the endpoint, the network and the credentials"
    return ContentError("unreadable", f"{name} could not be read ({why})")


def _too_slow(url: str, limit_s: float | None) -> ContentError:
    waited = "in time" if limit_s is None else f"within {limit_s:g} s"
    return ContentError(
        "timeout", f"{redact(url)}: no answer {waited}; check the endpoint and the network"
    )


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
