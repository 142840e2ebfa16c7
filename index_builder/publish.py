"""Versions on disk: a reader sees the old version or the new one, whole.

    GALLERY/current                      name of the published version, and its manifest's sha256;
                                         below it those that were published before
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
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cots_model.errors import CotsError, GalleryError

POINTER = "current"
VERSIONS = "versions"
LOCK = ".lock"
WORK = ".build"
PARTS = "parts"
UNFINISHED_PART = ".partial"
_PARTIAL = ".partial-"
_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_VERSION = re.compile(r"^[0-9]{8}T[0-9]{6}\.[0-9]{6}Z$")
_WITHDRAWN = "withdrawn"
_SHOWN = 3  # galleries that are named to who names none
_LINE = re.compile(rf"^([0-9]{{8}}T[0-9]{{6}}\.[0-9]{{6}}Z) ([0-9a-f]{{64}})( {_WITHDRAWN})?$")


@dataclass(frozen=True)
class Pointer:
    """A version, and the sha256 of its manifest."""

    version: str
    manifest_sha256: str


@dataclass(frozen=True)
class History:
    """What `GALLERY/current` says.

    Attributes:
        current: the published version.
        earlier: those that were published before, but for the withdrawn.
        withdrawn: those that were rolled back from, in that order; of one rollback the later first.
    """

    current: Pointer
    earlier: tuple[Pointer, ...] = ()
    withdrawn: tuple[Pointer, ...] = ()

    def published(self, pointer: Pointer) -> History:
        """The history once a new version is published."""
        return replace(self, current=pointer, earlier=(*self.earlier, self.current))

    def moved(self, pointer: Pointer) -> History:
        """The history once it goes to another of its versions.

        Those later than it become withdrawn. Where it was withdrawn itself it is so no more, nor
        are those before it that were rolled back from since.
        """
        known = (*self.earlier, self.current)
        later = sorted((p for p in known if p.version > pointer.version), key=_name, reverse=True)
        withdrawn = [*self.withdrawn, *later]
        names = [one.version for one in withdrawn]
        at = names.index(pointer.version) if pointer.version in names else len(names)
        kept = [one for n, one in enumerate(withdrawn) if n < at or one.version > pointer.version]
        gone = {one.version for one in kept} | {pointer.version}
        earlier = [one for one in (*known, *withdrawn) if one.version not in gone]
        return History(pointer, tuple(dict.fromkeys(earlier)), tuple(kept))

    def only(self, names: Collection[str]) -> History:
        """Without the versions that are not there any more."""
        return replace(
            self,
            earlier=tuple(one for one in self.earlier if one.version in names),
            withdrawn=tuple(one for one in self.withdrawn if one.version in names),
        )

    def text(self) -> str:
        """As it is written: a line for each version, the current first."""
        lines = [f"{one.version} {one.manifest_sha256}" for one in (self.current, *self.earlier)]
        lines += [f"{one.version} {one.manifest_sha256} {_WITHDRAWN}" for one in self.withdrawn]
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True)
class Published:
    """The versions of a gallery that are on disk, at one moment.

    Attributes:
        current: the one that is published.
        versions: those that were ever, oldest first. One that is later than the current and not
            withdrawn never was: its builder was killed before it moved the pointer.
        withdrawn: those of them that were rolled back from.
        digests: sha256 of their manifests, as far as they were kept.
    """

    current: Pointer
    versions: tuple[str, ...]
    withdrawn: frozenset[str]
    digests: Mapping[str, str]


def version_folder(root: Path, version: str) -> Path:
    """Folder of a published version."""
    return root / VERSIONS / version


def new_version_name(root: Path | None = None) -> str:
    """A version name that sorts by time: behind all that `root` has published in any case."""
    name = datetime.now(UTC).strftime(_FORMAT)
    history = None if root is None else _history_or_none(root)
    if history is None:
        return name
    latest = max(map(_name, (history.current, *history.withdrawn)))
    if name > latest:
        return name
    return (datetime.strptime(latest, _FORMAT) + timedelta(microseconds=1)).strftime(_FORMAT)


def read_pointer(root: Path) -> Pointer:
    """Which version is published; raises as `read_history`."""
    return read_history(root).current


def read_history(root: Path) -> History:
    """Which version is published, and which were before.

    Raises:
        GalleryError: if `root` is no gallery, was never published, or its pointer is damaged.
    """
    try:
        lines = (root / POINTER).read_text("ascii").splitlines()
    except FileNotFoundError as err:
        raise GalleryError(_why_no_pointer(root)) from err
    except (OSError, UnicodeDecodeError) as err:
        raise GalleryError(f"{root / POINTER} cannot be read ({err}); build again") from err
    found = [_LINE.match(line) for line in lines]
    whole = [line for line in found if line is not None]
    if not whole or len(whole) != len(found) or whole[0][3]:
        raise GalleryError(f"{root / POINTER} is damaged; build the gallery again")
    current, *others = [(Pointer(line[1], line[2]), bool(line[3])) for line in whole]
    return History(
        current[0],
        tuple(pointer for pointer, is_withdrawn in others if not is_withdrawn),
        tuple(pointer for pointer, is_withdrawn in others if is_withdrawn),
    )


def published_versions(root: Path) -> Published:
    """What is published, and what was before and is kept; raises as `read_history`."""
    history = read_history(root)
    current, withdrawn = history.current, set(map(_name, history.withdrawn))
    names = [name for name in whole_versions(root) if name <= current.version or name in withdrawn]
    digests = {
        one.version: one.manifest_sha256 for one in (*history.earlier, *history.withdrawn, current)
    }
    return Published(current, tuple(names), frozenset(withdrawn.intersection(names)), digests)


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
    history = _history_or_none(root)
    if (root / POINTER).exists() and history is None:
        latest = None  # which cannot be told: nothing whole is removed
    else:
        latest = "" if history is None else history.current.version
    withdrawn = set() if history is None else set(map(_name, history.withdrawn))
    for path in sorted((root / VERSIONS).iterdir()):
        later = latest is not None and _VERSION.match(path.name) and path.name > latest
        if path.name.startswith(_PARTIAL) or (later and path.name not in withdrawn):
            shutil.rmtree(path)
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
    history = _history_or_none(root)
    _write(root, History(pointer) if history is None else history.published(pointer))


def move_pointer(root: Path, pointer: Pointer) -> None:
    """Point at another published version (lock held); those later than it become withdrawn."""
    _write(root, read_history(root).moved(pointer))


def prune(root: Path, *, keep: int) -> None:
    """Remove all but the current version and the `keep - 1` newest others (lock held).

    Those that were rolled back from go first, however new they are.
    """
    published = published_versions(root)
    others = [name for name in whole_versions(root) if name != published.current.version]
    others.sort(key=lambda name: (name not in published.withdrawn, name), reverse=True)
    for name in others[max(keep - 1, 0) :]:
        shutil.rmtree(version_folder(root, name))


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


def _history_or_none(root: Path) -> History | None:
    """What is published; `None` where nothing ever was, or that cannot be told."""
    with suppress(GalleryError):
        return read_history(root)
    return None


def _write(root: Path, history: History) -> None:
    """So that a reader sees what it was or what it becomes; gone versions are forgotten."""
    fresh = root / f".{POINTER}.new"
    fresh.write_text(history.only(whole_versions(root)).text(), "ascii")
    sync(fresh)
    os.replace(fresh, root / POINTER)
    sync(root)


def _name(pointer: Pointer) -> str:
    return pointer.version


def _why_no_pointer(root: Path) -> str:
    if not root.is_dir():
        return (
            f"there is no gallery at {root}; make one with `cots index build SRC --gallery {root}`"
        )
    if (root / VERSIONS).is_dir():
        return f"{root} has no finished version yet; run `cots index build` again"
    inside = sorted(path.parent.name for path in root.glob(f"*/{POINTER}"))
    if inside:
        more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
        shown = ", ".join(str(root / name) for name in inside[:_SHOWN])
        return f"{root} is no gallery but holds some; name one: {shown}{more}"
    return f"{root} is not a gallery (it has no file {POINTER}); name a folder that a build made"
