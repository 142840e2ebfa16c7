"""Versions on disk: a reader sees the old version or the new one, whole.

    GALLERY/current                      name of the published version, and its manifest's sha256
    GALLERY/withdrawn                    versions that were published and then rolled back from
    GALLERY/versions/<version>/...       the published version and those before it
    GALLERY/versions/.partial-<version>  a build in progress, or what a killed one left behind
    GALLERY/.build/                      listing and finished parts of a build that is not through
    GALLERY/.lock                        held (flock) while a build runs

A version is written under `.partial-`, synced to disk, renamed into place, and only then named by
`current`, itself replaced by an atomic rename.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cots_model.errors import CotsError, GalleryError

POINTER = "current"
WITHDRAWN = "withdrawn"
VERSIONS = "versions"
LOCK = ".lock"
WORK = ".build"
PARTS = "parts"
UNFINISHED_PART = ".partial"
_PARTIAL = ".partial-"
_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_VERSION = re.compile(r"^[0-9]{8}T[0-9]{6}\.[0-9]{6}Z$")
_DIGEST = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Pointer:
    """What `GALLERY/current` says: the version, and the sha256 of its manifest."""

    version: str
    manifest_sha256: str


def version_folder(root: Path, version: str) -> Path:
    """Folder of a published version."""
    return root / VERSIONS / version


def new_version_name(root: Path | None = None) -> str:
    """A version name that sorts by time: behind all that `root` has published in any case."""
    name = datetime.now(UTC).strftime(_FORMAT)
    latest = max(_current_or_none(root) or "", *withdrawn_versions(root), "") if root else ""
    if not latest or name > latest:
        return name
    return (datetime.strptime(latest, _FORMAT) + timedelta(microseconds=1)).strftime(_FORMAT)


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


def published_versions(root: Path) -> list[str]:
    """The versions on disk that were published, oldest first; raises as `read_pointer`.

    One that is later than the current, and was not withdrawn, never was: its builder was killed
    before it moved the pointer.
    """
    current, withdrawn = read_pointer(root).version, withdrawn_versions(root)
    return [name for name in whole_versions(root) if name <= current or name in withdrawn]


def withdrawn_versions(root: Path) -> frozenset[str]:
    """The versions that were rolled back from.

    Raises:
        OSError: if the file is there and cannot be read: without it they would be removed.
    """
    try:
        lines = (root / WITHDRAWN).read_text("ascii", "replace").split()
    except FileNotFoundError:
        return frozenset()
    return frozenset(line for line in lines if _VERSION.match(line))


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

    That includes a whole version that no pointer was ever moved to.
    """
    current, withdrawn = _current_or_none(root), withdrawn_versions(root)
    for path in sorted((root / VERSIONS).iterdir()):
        later = current is not None and _VERSION.match(path.name) and path.name > current
        if path.name.startswith(_PARTIAL) or (later and path.name not in withdrawn):
            shutil.rmtree(path)
    if current in withdrawn:  # a rollback was killed before it moved the pointer
        _write_withdrawn(root, withdrawn - {current})
    folder = root / VERSIONS / f"{_PARTIAL}{version}"
    folder.mkdir()
    return folder


def publish(root: Path, partial: Path, pointer: Pointer) -> None:
    """Put a complete version in place and point at it (lock held)."""
    for path in sorted(partial.iterdir()):
        sync(path)
    sync(partial)
    os.rename(partial, version_folder(root, pointer.version))
    sync(root / VERSIONS)
    _point_at(root, pointer)


def move_pointer(root: Path, pointer: Pointer) -> None:
    """Point at another published version (lock held); those later than it become withdrawn."""
    _write_withdrawn(root, {name for name in published_versions(root) if name > pointer.version})
    _point_at(root, pointer)


def prune(root: Path, *, keep: int) -> None:
    """Remove all but the current version and the `keep - 1` newest others (lock held).

    Those that were rolled back from go first, however new they are.
    """
    current, withdrawn = read_pointer(root).version, withdrawn_versions(root)
    others = [name for name in whole_versions(root) if name != current]
    others.sort(key=lambda name: (name not in withdrawn, name), reverse=True)
    for name in others[max(keep - 1, 0) :]:
        shutil.rmtree(version_folder(root, name))
    if withdrawn:
        _write_withdrawn(root, withdrawn & set(whole_versions(root)))


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def whole_versions(root: Path) -> list[str]:
    """Whole versions on disk, oldest first."""
    return sorted(path.name for path in (root / VERSIONS).iterdir() if _VERSION.match(path.name))


def _current_or_none(root: Path) -> str | None:
    """The current version, empty where none was ever published; `None` if that cannot be told."""
    if not (root / POINTER).exists():
        return ""
    try:
        return read_pointer(root).version
    except GalleryError:
        return None


def _point_at(root: Path, pointer: Pointer) -> None:
    _replace(root / POINTER, f"{pointer.version} {pointer.manifest_sha256}\n")


def _write_withdrawn(root: Path, versions: Iterable[str]) -> None:
    text = "".join(f"{version}\n" for version in sorted(versions))
    if text:
        _replace(root / WITHDRAWN, text)
    else:
        (root / WITHDRAWN).unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    """Write a small file so that a reader sees what it was or what it becomes."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, "ascii")
    sync(fresh)
    os.replace(fresh, path)
    sync(path.parent)


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
