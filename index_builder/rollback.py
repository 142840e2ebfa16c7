"""The versions that a gallery keeps, and the way back to one of them.

    for version in list_versions(root):
        print(version.version, version.count)
    roll_back(root)  # to the one before

A rollback moves the pointer and nothing else. The versions that it leaves behind stay as they are,
so that it can be taken back, and are the first to go when the next version is published.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cots_model.errors import GalleryError, InputError
from index_builder.gallery import OtherModelError
from index_builder.lock import builder_lock
from index_builder.manifest import MANIFEST_FILE, Manifest, Modality, check_file, parse_manifest
from index_builder.publish import (
    Pointer,
    Published,
    move_pointer,
    published_versions,
    read_pointer,
    version_folder,
    writing,
)

Progress = Callable[[int], object]


@dataclass(frozen=True)
class VersionSummary:
    """One version on disk.

    Attributes:
        version: its name.
        current: whether it is the published one.
        withdrawn: whether it was rolled back from.
        size_bytes: all its files together, as they are on disk.
        problem: what is wrong with it, as far as a look at its manifest and at the sizes of its
            files tells; `None` if nothing is.
        created: ISO 8601 time, UTC; this and the rest are `None` if its manifest is no use.
        count: items that it holds.
        modality: what these are.
        index: kind of its index.
        model_name: short name of the model that made it.
        model_fingerprint: of that model.
    """

    version: str
    current: bool
    withdrawn: bool
    size_bytes: int
    problem: str | None
    created: str | None = None
    count: int | None = None
    modality: Modality | None = None
    index: str | None = None
    model_name: str | None = None
    model_fingerprint: str | None = None


@dataclass(frozen=True)
class RollbackReport:
    """What a rollback did.

    Attributes:
        gallery: the gallery folder.
        version: the version that is published now.
        previous_version: the one that was published before; the same if nothing was to be done.
        count: items that the gallery holds now.
        modality: what these are.
        verified: whether the hash of every file was compared, not only its size.
    """

    gallery: str
    version: str
    previous_version: str
    count: int
    modality: Modality
    verified: bool


def list_versions(root: Path) -> list[VersionSummary]:
    """The versions on disk, the newest first.

    Raises:
        GalleryError: as `published_versions`.
    """
    published = published_versions(root)
    summaries = []
    for name in reversed(published.versions):
        with suppress(FileNotFoundError):  # pruned while it was looked at
            summaries.append(_summary(root, name, published))
    return summaries


def roll_back(
    root: Path,
    *,
    to: str | None = None,
    verify: bool = False,
    other_model: bool = False,
    progress: Progress = lambda _: None,
) -> RollbackReport:
    """Publish a version again that the gallery still keeps.

    Args:
        root: the gallery.
        to: its name, also that of a later one, to take a rollback back; the one before the
            current if not given.
        verify: hash all its files, which takes about a second per GB, instead of only comparing
            their sizes.
        other_model: let it be a version of another model than the current one's.
        progress: called with the size of each file that was hashed.

    Raises:
        InputError: if no such version is kept.
        GalleryError: if there is no gallery, or the version is damaged, or of another model
            (`OtherModelError`, both fingerprints named); a `MilvusError` if Milvus does not answer
            or has its rows no more.
        GalleryBusyError: if another build is writing this gallery.
        CotsError: if the gallery cannot be written.
    """
    read_pointer(root)  # no lock file in a folder that is no gallery
    with writing(root), builder_lock(root):
        published = published_versions(root)
        before = published.current.version
        target = _target(root, published, to)
        try:
            manifest, digest = _read_version(root, target, published)
            problem = _problem(version_folder(root, target), manifest, verify, progress)
        except GalleryError as err:
            raise _damaged(root, target, published, str(err)) from err
        if problem is not None:
            raise _damaged(root, target, published, problem)
        _check_collection(manifest)
        if target != before:
            _check_can_return(root, manifest, published, other_model=other_model)
            move_pointer(root, Pointer(target, digest))
    return RollbackReport(str(root), target, before, manifest.count, manifest.modality, verify)


def _target(root: Path, published: Published, to: str | None) -> str:
    current = published.current.version
    if to is not None:
        if to not in published.versions:
            raise InputError(f"{root} keeps no version {to!r}; it keeps {_kept(published)}")
        return to
    earlier = [
        name for name in published.versions if name < current and name not in published.withdrawn
    ]
    if not earlier:
        raise InputError(
            f"{root} keeps no version before {current}; it keeps {_kept(published)} (--to goes to "
            "any of them; --keep-versions of the commands that publish says how many stay)"
        )
    return earlier[-1]


def _check_can_return(
    root: Path, manifest: Manifest, published: Published, *, other_model: bool
) -> None:
    """Refuse a version that whoever has the gallery open now could not search."""
    version, current = manifest.version, published.current.version
    try:
        now, _ = _read_version(root, current, published)
    except GalleryError:
        return  # which may be why one goes back
    if other_model or now.model_fingerprint == manifest.model_fingerprint:
        return
    raise OtherModelError(
        f"version {version} of {root} was made by {manifest.model_name} with fingerprint "
        f"{manifest.model_fingerprint}, but {current}, which is current, by {now.model_name} with "
        f"fingerprint {now.model_fingerprint}; if the service goes back to that checkpoint too, "
        "say --other-model"
    )


def _damaged(root: Path, name: str, published: Published, problem: str) -> GalleryError:
    return GalleryError(
        f"version {name} of {root} is damaged ({problem}), so {published.current.version} stays "
        f"current; {root} keeps {_kept(published)}"
    )


def _check_collection(manifest: Manifest) -> None:
    """Refuse a version in Milvus whose rows a later export has replaced; raises MilvusError."""
    if manifest.index.kind == "milvus":
        from index_builder.milvus.open import check_collection

        check_collection(manifest)


def _read_version(root: Path, name: str, published: Published) -> tuple[Manifest, str]:
    """Manifest of a version, which must be the one that was published, and its sha256."""
    path = version_folder(root, name) / MANIFEST_FILE
    try:
        data = path.read_bytes()
    except OSError as err:
        raise GalleryError(f"{path} cannot be read ({err.strerror})") from err
    digest = hashlib.sha256(data).hexdigest()
    if digest != published.digests.get(name, digest):
        raise GalleryError(f"{path} is damaged: it is not the one that was published")
    return parse_manifest(data, path), digest


def _problem(
    folder: Path, manifest: Manifest, verify: bool, progress: Progress = lambda _: None
) -> str | None:
    """What is wrong with the first file that is not as the manifest says."""
    for name, expected in manifest.files.items():
        problem = check_file(folder / name, expected, checksum=verify)
        if problem is not None:
            return f"{name}: {problem}"
        progress(expected.size_bytes)
    return None


def _summary(root: Path, name: str, published: Published) -> VersionSummary:
    folder = version_folder(root, name)
    current, withdrawn = name == published.current.version, name in published.withdrawn
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    try:
        manifest, _ = _read_version(root, name, published)
    except GalleryError as err:
        return VersionSummary(name, current, withdrawn, size_bytes, str(err))
    return VersionSummary(
        version=name,
        current=current,
        withdrawn=withdrawn,
        size_bytes=size_bytes,
        problem=_problem(folder, manifest, False),
        created=manifest.created,
        count=manifest.count,
        modality=manifest.modality,
        index=manifest.index.kind,
        model_name=manifest.model_name,
        model_fingerprint=manifest.model_fingerprint,
    )


def _kept(published: Published) -> str:
    current = published.current.version
    return ", ".join(
        f"{name} (current)" if name == current else name for name in published.versions
    )
