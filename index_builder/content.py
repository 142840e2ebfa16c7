"""Reading the originals: a file, a url, or a byte range of a tar shard.

The builder's decoding workers and a gallery that serves an original both come through here, so a
fifo, a device, a vanished file or a server that does not answer is met in one place. fsspec is
imported only when a url comes: worker processes start with this module.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO, cast

from index_builder.location import (
    ContentError,
    Location,
    Stamp,
    file_uri,
    is_url,
    location_of,
    name_of,
    path_of_uri,
    place_of,
    uri_of,
)

__all__ = [
    "ContentCheck",
    "ContentError",
    "Location",
    "Section",
    "Stamp",
    "file_uri",
    "location_of",
    "open_location",
    "path_of_uri",
    "place_of",
    "read_location",
    "uri_of",
]

MAX_FILE_BYTES = 512 * 1024 * 1024

_CHUNK_BYTES = 1024 * 1024
_MAX_REMEMBERED = 10_000


def open_location(location: Location) -> tuple[BinaryIO, Stamp]:
    """Open the bytes of an item for reading and seeking; never blocks on a fifo or a device.

    Returns:
        the open file (for a member: a view of just its bytes), and the stamp of the item: the
        item's own size, with the modification time of the file or shard that holds it.

    Raises:
        ContentError: with a reason, if it cannot be opened, is no regular file, lies outside its
            root, its server does not answer in time, the package for its protocol is not
            installed, or its shard is too short to hold it.
    """
    if is_url(location.path):
        from index_builder.remote import open_url

        return open_url(location)
    whole, status = _open_file(location)
    if location.offset_bytes is None or location.size_bytes is None:
        return whole, Stamp(status.st_size, status.st_mtime)
    if location.offset_bytes + location.size_bytes > status.st_size:
        whole.close()
        raise too_short(location.path)
    section = Section(whole, location.offset_bytes, location.size_bytes)
    view = cast(BinaryIO, io.BufferedReader(section))
    return view, Stamp(location.size_bytes, status.st_mtime)


def read_location(location: Location, *, max_bytes: int = MAX_FILE_BYTES) -> tuple[bytes, Stamp]:
    """Read all bytes of an item.

    Raises:
        ContentError: as `open_location`, and for items over `max_bytes`.
    """
    if is_url(location.path):
        from index_builder.remote import read_url

        return read_url(location, max_bytes=max_bytes)
    handle, stamp = open_location(location)
    with handle:
        if stamp.size_bytes > max_bytes:
            raise too_large(location.path, stamp.size_bytes, max_bytes)
        try:
            data = handle.read(stamp.size_bytes + 1)
        except OSError as err:
            raise _explain(err, location.path) from err
    return data, Stamp(len(data), stamp.mtime_s)


def too_large(place: str, size_bytes: int, max_bytes: int) -> ContentError:
    """The error for an original that is not read because of its size."""
    return ContentError(
        "too_large",
        f"{name_of(place)} holds {size_bytes:,} bytes; at most {max_bytes:,} are read; make it "
        "smaller",
    )


def too_short(place: str) -> ContentError:
    """The error for a shard that ends before one of its members does."""
    return ContentError(
        "truncated", f"{name_of(place)} ends before this item does; copy the shard again"
    )


class ContentCheck:
    """Whether originals are what was indexed, by their hash; remembers the last 10,000."""

    def __init__(self) -> None:
        self._known: dict[tuple[Location, Stamp], str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def is_same(
        self, location: Location, file: BinaryIO, stamp: Stamp, size_bytes: int, sha256: str
    ) -> bool:
        """Compare an open original with the size and hash it had; leaves it at its start.

        It is read only if its size does not tell, and it was not read before with this stamp: all
        segments of a video are one reading.
        """
        if stamp.size_bytes != size_bytes:
            return False
        with self._lock:
            found = self._known.get((location, stamp))
        if found is None:
            found = _sha256(file)
            file.seek(0)
            if stamp.mtime_s:  # 0 is a place that does not tell times: its stamp proves nothing
                self._remember(location, stamp, found)
        return found == sha256

    def _remember(self, location: Location, stamp: Stamp, found: str) -> None:
        with self._lock:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.pop(next(iter(self._known)))
            self._known[location, stamp] = found


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


class Section(io.RawIOBase):
    """Read-only view of one byte range of an open file; closing it closes the file."""

    def __init__(self, whole: BinaryIO, offset_bytes: int, size_bytes: int) -> None:
        super().__init__()
        self._whole = whole
        self._offset = offset_bytes
        self._size = size_bytes
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position within the range, in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the range; ValueError before its start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}; positions start at 0")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read up to the end of the range."""
        wanted = min(len(buffer), max(self._size - self._at, 0))
        data = self._bytes_at(self._at, wanted) if wanted else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _bytes_at(self, at: int, wanted: int) -> bytes:
        self._whole.seek(self._offset + at)
        return self._whole.read(wanted)

    def close(self) -> None:
        """Close the file too."""
        if not self.closed:
            self._whole.close()
        super().close()


def _open_file(location: Location) -> tuple[BinaryIO, os.stat_result]:
    try:
        path = _resolve(location)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        raise _explain(err, location.path) from err
    except ValueError as err:  # a NUL in the name
        raise ContentError("missing", f"{location.path!a} is no file name ({err})") from err
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _not_a_file(location.path, status.st_mode)
        return cast(BinaryIO, os.fdopen(handle, "rb")), status
    except BaseException:
        os.close(handle)
        raise


def _resolve(location: Location) -> str:
    if location.root is None:
        return location.path
    real = os.path.realpath(location.path, strict=True)
    if not Path(real).is_relative_to(location.root):
        raise ContentError(
            "symlink_outside",
            f"{os.path.basename(location.path)} points outside the source folder; "
            "copy the file into it",
        )
    return real


def _explain(err: OSError, path: str) -> ContentError:
    name = os.path.basename(path)
    if err.errno == errno.ELOOP:
        return ContentError("symlink_loop", f"{name} is a symlink to itself; remove it")
    if err.errno == errno.ENOENT and os.path.islink(path):
        return ContentError("broken_symlink", f"{name} points at nothing; mend or remove the link")
    if err.errno == errno.ENOENT:
        folder = os.path.dirname(path) or "."
        why = f"{name} is not in {folder}; put it there, or name the folder that has it"
        return ContentError("missing", why)
    if err.errno == errno.ENXIO:
        return ContentError("not_a_file", f"{name} is a socket or device; only files are read")
    why = err.strerror or str(err)
    return ContentError("unreadable", f"{name} could not be read ({why}); check its permissions")


def _not_a_file(path: str, mode: int) -> ContentError:
    kinds = {stat.S_IFIFO: "fifo", stat.S_IFDIR: "folder", stat.S_IFSOCK: "socket"}
    kind = kinds.get(stat.S_IFMT(mode), "device")
    return ContentError(
        "not_a_file", f"{os.path.basename(path)} is a {kind}; only regular files are read"
    )
