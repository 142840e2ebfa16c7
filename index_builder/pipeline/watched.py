"""A file whose reader tells how far it has come, so that long jobs are told from stuck ones."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import BinaryIO

STEP_BYTES = 1024 * 1024
"""So much that was not read before is a step forward; the time limit holds for each step."""


class Watched(io.RawIOBase):
    """Read-only view of an open file that calls `progress` as reading enters new parts of it.

    Reading the same part again and again is no progress.
    """

    def __init__(self, file: BinaryIO, progress: Callable[[], None]) -> None:
        super().__init__()
        self._file = file
        self._progress = progress
        self._reported = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in the file, in bytes."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move in the file."""
        return self._file.seek(offset, whence)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read as much as there is, at most the buffer's length."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        if self._file.tell() >= self._reported + STEP_BYTES:
            self._reported = self._file.tell()
            self._progress()
        return len(data)

    def sha256(self) -> str:
        """Hex digest of the whole file, read from its start; moves to its start again."""
        digest = hashlib.sha256()
        self.seek(0)
        while block := self.read(STEP_BYTES):
            digest.update(block)
        self.seek(0)
        self._reported = 0
        return digest.hexdigest()
