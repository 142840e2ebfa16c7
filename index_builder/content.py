"""Reading the originals: a file, or a byte range of a tar shard.

The builder's decoding workers and a gallery that serves an original both come through here, so a
fifo, a device or a vanished file is met in one place. Only the standard library and
`cots_model.errors` are imported: worker processes start with this module.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from cots_model.errors import InputError

MAX_FILE_BYTES = 512 * 1024 * 1024


class ContentError(InputError):
    """An original that cannot be read.

    Attributes:
        reason: short stable code: `unreadable`, `missing`, `broken_symlink`, `symlink_loop`,
            `symlink_outside`, `not_a_file`, `too_large`, `truncated` or `changed`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ContentError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class Location:
    """Where the bytes of one item lie.

    Attributes:
        path: the file, or the shard that holds it.
        offset_bytes: start of the member inside the shard; `None` for a whole file.
        size_bytes: length of the member; `None` for a whole file.
        root: the folder that the file must lie in once symlinks are followed; `None` for any.
    """

    path: str
    offset_bytes: int | None = None
    size_bytes: int | None = None
    root: str | None = None


@dataclass(frozen=True)
class Stamp:
    """What tells cheaply whether a file has changed: its size and modification time."""

    size_bytes: int
    mtime_s: float


def file_uri(path: str, member: str | None = None) -> str:
    """A `file://` uri; a shard's member is named behind `#`."""
    uri = "file://" + quote_from_bytes(os.fsencode(os.path.abspath(path)))
    return uri if member is None else f"{uri}#{quote_from_bytes(os.fsencode(member))}"


def path_of_uri(uri: str) -> str:
    """The local path of a `file://` uri.

    Raises:
        ContentError: for any other scheme.
    """
    parts = urlsplit(uri)
    if parts.scheme != "file":
        raise ContentError("unreadable", f"{uri} cannot be opened; only file:// items can be read")
    return os.fsdecode(unquote_to_bytes(parts.path))


def open_location(location: Location) -> tuple[BinaryIO, Stamp]:
    """Open the bytes of an item for reading and seeking; never blocks on a fifo or a device.

    Returns:
        the open file (for a member: a view of just its bytes), and the stamp of the item: the
        item's own size, with the modification time of the file or shard that holds it.

    Raises:
        ContentError: with a reason, if it cannot be opened, is no regular file, lies outside its
            root, or its shard is too short to hold it.
    """
    try:
        path = _resolve(location)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        raise _explain(err, location.path) from err
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _not_a_file(location.path, status.st_mode)
        whole = cast(BinaryIO, os.fdopen(handle, "rb"))
    except BaseException:
        os.close(handle)
        raise
    if location.offset_bytes is None or location.size_bytes is None:
        return whole, Stamp(status.st_size, status.st_mtime)
    if location.offset_bytes + location.size_bytes > status.st_size:
        whole.close()
        name = os.path.basename(location.path)
        raise ContentError("truncated", f"{name} ends before this item does; copy the shard again")
    section = Section(whole, location.offset_bytes, location.size_bytes)
    view = cast(BinaryIO, io.BufferedReader(section))
    return view, Stamp(location.size_bytes, status.st_mtime)


def read_location(location: Location) -> tuple[bytes, Stamp]:
    """Read all bytes of an item.

    Raises:
        ContentError: as `open_location`, and for items over `MAX_FILE_BYTES`.
    """
    handle, stamp = open_location(location)
    with handle:
        if stamp.size_bytes > MAX_FILE_BYTES:
            raise ContentError(
                "too_large",
                f"{os.path.basename(location.path)} holds {stamp.size_bytes:,} bytes; "
                f"at most {MAX_FILE_BYTES:,} are read; make it smaller",
            )
        try:
            data = handle.read(stamp.size_bytes + 1)
        except OSError as err:
            raise _explain(err, location.path) from err
    return data, Stamp(len(data), stamp.mtime_s)


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
        self._whole.seek(self._offset + self._at)
        data = self._whole.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file too."""
        if not self.closed:
            self._whole.close()
        super().close()


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
        return ContentError("missing", f"{name} is not there any more; put it back or build again")
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
