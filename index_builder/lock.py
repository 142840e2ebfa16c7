"""One builder at a time: the lock of a gallery, and the folder that a first build makes for it."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from cots_model.errors import CotsError, InputError
from index_builder.publish import (
    LOCK,
    PARTS,
    UNFINISHED_PART,
    VERSIONS,
    WORK,
    whole_versions,
)

_ATTEMPTS = 10


class GalleryBusyError(CotsError):
    """Another builder is at work on the gallery."""


@contextmanager
def builder_lock(root: Path) -> Iterator[None]:
    """Make the gallery folder and hold its lock; it goes with the process, however that ends.

    What was made for a first build that fails is removed again, unless that can be gone on with.

    Raises:
        InputError: if `root` is something else than a gallery or a new or empty folder.
        GalleryBusyError: if another builder holds it, naming that one.
    """
    _check_is_gallery_or_empty(root)
    made: list[Path] = []
    with _lock(root, made) as handle:
        handle.truncate(0)
        since = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        handle.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        handle.flush()
        try:
            yield
        except BaseException:
            _remove_made(root, made)
            raise


def _lock(root: Path, made: list[Path]) -> TextIO:
    """The lock file, open and held; folders that have to be made for it are noted in `made`."""
    for _ in range(_ATTEMPTS):
        _make_folder(root / VERSIONS, made)
        with ExitStack() as stack, suppress(FileNotFoundError):
            handle = stack.enter_context((root / LOCK).open("a+", encoding="ascii"))
            _hold(handle, root)
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(root / LOCK)):
                stack.pop_all()
                return handle
        # a first build that failed has removed it meanwhile
    raise GalleryBusyError(f"other builds of {root} come and go; try again")


def _hold(handle: TextIO, root: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        raise GalleryBusyError(
            f"another build is writing {root} ({holder}); wait for it or choose another gallery"
        ) from err


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; the new ones are noted, outermost first."""
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            made.append(path)


def _remove_made(root: Path, made: list[Path]) -> None:
    """Remove what was made for a first build, unless there is something to go on with."""
    if root / VERSIONS not in made or whole_versions(root) or _has_finished_part(root):
        return
    shutil.rmtree(root / WORK, ignore_errors=True)
    with suppress(OSError):  # somebody has put something there
        (root / VERSIONS).rmdir()
        (root / LOCK).unlink()
        for path in list(dict.fromkeys(reversed(made)))[1:]:
            path.rmdir()


def _has_finished_part(root: Path) -> bool:
    parts = root / WORK / PARTS
    return parts.is_dir() and any(path.suffix != UNFINISHED_PART for path in parts.iterdir())


def _check_is_gallery_or_empty(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; --gallery takes a folder, new or an existing gallery")
    if root.is_dir() and not (root / VERSIONS).is_dir() and any(root.iterdir()):
        raise InputError(
            f"{root} holds files and is no gallery; --gallery takes a new or empty folder, "
            "or an existing gallery"
        )
