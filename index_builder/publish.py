"""Versions on disk: one builder at a time, and a reader sees the old version or the new one, whole.

    GALLERY/current                      name of the published version, and its manifest's sha256
    GALLERY/versions/<version>/...       the published version and the one before it
    GALLERY/versions/.partial-<version>  a build in progress, or what a killed one left behind
    GALLERY/.build/                      listing and finished parts of a build that is not through
    GALLERY/.lock                        held (flock) while a build runs

A version is written under `.partial-`, synced to disk, renamed into place, and only then named by
`current`, itself replaced by an atomic rename.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cots_model.errors import CotsError, GalleryError, InputError

POINTER = "current"
VERSIONS = "versions"
LOCK = ".lock"
WORK = ".build"
_PARTIAL = ".partial-"
_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_VERSION = re.compile(r"^[0-9]{8}T[0-9]{6}\.[0-9]{6}Z$")
_DIGEST = re.compile(r"^[0-9a-f]{64}$")


class GalleryBusyError(CotsError):
    """Another builder is at work on the gallery."""


@dataclass(frozen=True)
class Pointer:
    """What `GALLERY/current` says: the version, and the sha256 of its manifest."""

    version: str
    manifest_sha256: str


def version_folder(root: Path, version: str) -> Path:
    """Folder of a published version."""
    return root / VERSIONS / version


def new_version_name(root: Path | None = None) -> str:
    """A version name that sorts by time: behind the current one of `root` in any case."""
    name = datetime.now(UTC).strftime(_FORMAT)
    current = _current_or_none(root) if root else None
    if not current or name > current:
        return name
    return (datetime.strptime(current, _FORMAT) + timedelta(microseconds=1)).strftime(_FORMAT)


def read_pointer(root: Path) -> Pointer:
    """Which version is published.

    Raises:
        GalleryError: if `root` is no gallery, was never published, or its pointer is damaged.
    """
    try:
        words = (root / POINTER).read_text("ascii").split()
    except FileNotFoundError as err:
        raise GalleryError(_why_no_pointer(root)) from err
    except (OSError, UnicodeDecodeError) as err:
        raise GalleryError(f"{root / POINTER} cannot be read ({err}); build again") from err
    if len(words) != 2 or not _VERSION.match(words[0]) or not _DIGEST.match(words[1]):
        raise GalleryError(f"{root / POINTER} is damaged; build the gallery again")
    return Pointer(words[0], words[1])


@contextmanager
def builder_lock(root: Path) -> Iterator[None]:
    """Make the gallery folder and hold its lock; it goes with the process, however that ends.

    Raises:
        InputError: if `root` is something else than a gallery or a new or empty folder.
        GalleryBusyError: if another builder holds it, naming that one.
    """
    _check_is_gallery_or_empty(root)
    (root / VERSIONS).mkdir(parents=True, exist_ok=True)
    with (root / LOCK).open("a+", encoding="ascii") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise GalleryBusyError(
                f"another build is writing {root} ({holder}); wait for it or choose another gallery"
            ) from err
        handle.truncate(0)
        since = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        handle.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        handle.flush()
        yield


@contextmanager
def partial_version(root: Path, version: str) -> Iterator[Path]:
    """The folder of a version being made; removed again unless it was published (lock held)."""
    folder = start_partial(root, version)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what the system says when a gallery cannot be written into an error of ours.

    Raises:
        CotsError: for any OSError.
    """
    try:
        yield
    except OSError as err:
        raise CotsError(
            f"{root} could not be written ({err}); check the disk and its permissions"
        ) from err


def start_partial(root: Path, version: str) -> Path:
    """Remove what killed builds left behind, and make the folder of a new one (lock held).

    That includes a whole version that no pointer was ever moved to: one later than the current.
    """
    current = _current_or_none(root)
    for path in sorted((root / VERSIONS).iterdir()):
        unpublished = current is not None and _VERSION.match(path.name) and path.name > current
        if unpublished or path.name.startswith(_PARTIAL):
            shutil.rmtree(path)
    folder = root / VERSIONS / f"{_PARTIAL}{version}"
    folder.mkdir()
    return folder


def _current_or_none(root: Path) -> str | None:
    """The current version, empty where none was ever published; `None` if that cannot be told."""
    if not (root / POINTER).exists():
        return ""
    try:
        return read_pointer(root).version
    except GalleryError:
        return None


def publish(root: Path, partial: Path, pointer: Pointer) -> None:
    """Put a complete version in place and point at it (lock held)."""
    for path in sorted(partial.iterdir()):
        sync(path)
    sync(partial)
    os.rename(partial, version_folder(root, pointer.version))
    sync(root / VERSIONS)
    fresh = root / f".{POINTER}.new"
    fresh.write_text(f"{pointer.version} {pointer.manifest_sha256}\n", "ascii")
    sync(fresh)
    os.replace(fresh, root / POINTER)
    sync(root)


def prune(root: Path, *, keep: int) -> None:
    """Remove all but the current version and the `keep - 1` newest others (lock held)."""
    current = read_pointer(root).version
    names = [path.name for path in (root / VERSIONS).iterdir() if _VERSION.match(path.name)]
    others = sorted((name for name in names if name != current), reverse=True)
    for name in others[max(keep - 1, 0) :]:
        shutil.rmtree(version_folder(root, name))


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why_no_pointer(root: Path) -> str:
    if not root.is_dir():
        return (
            f"there is no gallery at {root}; make one with `cots index build SRC --gallery {root}`"
        )
    if (root / VERSIONS).is_dir():
        return f"{root} has no finished version yet; run `cots index build` again"
    inside = sorted(path.parent.name for path in root.glob(f"*/{POINTER}"))
    if inside:
        return f"{root} is no gallery but holds some; name one: {root / inside[0]}"
    return f"{root} is not a gallery (it has no file {POINTER}); name a folder that a build made"


def _check_is_gallery_or_empty(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; --gallery takes a folder, new or an existing gallery")
    if root.is_dir() and not (root / VERSIONS).is_dir() and any(root.iterdir()):
        raise InputError(
            f"{root} holds files and is no gallery; --gallery takes a new or empty folder, "
            "or an existing gallery"
        )
