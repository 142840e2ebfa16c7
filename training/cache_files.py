"""Files of `data.cache_dir`: named by what decides them, made by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from training.example import Example

log = logging.getLogger(__name__)


def cache_key(decided: bytes, examples: Sequence[Example]) -> str:
    """The name of the file of some pictures, by their contents in their order.

    Data that were moved or copied are known again.

    Args:
        decided: whatever else decides what is in the file.
        examples: the pictures.
    """
    digest = hashlib.sha256(decided)
    known: dict[str, str] = {}
    for location in (example.location for example in examples):
        if location.path not in known:
            known[location.path] = _content(location.path)
        digest.update(json.dumps([known[location.path], location.offset_bytes]).encode())
    return digest.hexdigest()[:16]


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Other processes that want the same file wait here, and find it finished.

    The lock file is removed at the end, so whoever got the lock of one that was removed meanwhile
    has nothing, and begins again with the one that is there now.
    """
    lock = file.with_suffix(".lock")
    with _locked(lock, file):
        yield
        lock.unlink(missing_ok=True)  # whoever comes later finds the file


@contextmanager
def _locked(lock: Path, file: Path) -> Iterator[None]:
    while True:
        with lock.open("w") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("waiting for another process that makes %s", file)
                fcntl.flock(opened, fcntl.LOCK_EX)
            if _is_at(opened.fileno(), lock):
                yield
                return


def _is_at(handle: int, path: Path) -> bool:
    """Whether a path still names the file that was opened by it."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _content(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # reported when it is decoded
        return path
