"""The one way a version comes about: join, index, manifest, publish, prune.

`build`, `update`, `delete` and `merge` differ in what they join; all else is here.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cots_model.errors import InputError
from index_builder.indexes.base import IndexRequest
from index_builder.indexes.build import build_index
from index_builder.join import Joined, Piece, join
from index_builder.manifest import (
    EXCLUDED_FILE,
    FORMAT_VERSION,
    FRAME_TIMES_FILE,
    INDEX_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    SKIPPED_FILE,
    VECTORS_FILE,
    IndexInfo,
    Manifest,
    Modality,
    Recipe,
    ShardInfo,
    check_file,
    sha256_of,
    version_files,
)
from index_builder.progress import Progress
from index_builder.publish import Pointer, new_version_name, partial_version, prune, publish
from index_builder.vectors import open_vectors
from index_builder.version import write_excluded


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the manifest of a new version says before anything is joined.

    Attributes:
        modality: what the items are.
        dim: width E.
        model_fingerprint: of the model.
        model_name: its short name.
        source: what was indexed, for people.
        roots: where originals lie.
        recipe: how to do it again; says which index and which vectors are wanted.
        device: where the index is built.
        shard: which share of a gallery it is.
        excluded: ids that were taken out, and stay out.
        interleaved: whether the places of the pieces mix (a merge).
        keep_versions: how many versions stay.
    """

    modality: Modality
    dim: int
    model_fingerprint: str
    model_name: str
    source: str
    roots: tuple[str, ...]
    recipe: Recipe
    device: str = "auto"
    shard: ShardInfo | None = None
    excluded: frozenset[str] = frozenset()
    interleaved: bool = False
    keep_versions: int = 2

    @property
    def request(self) -> IndexRequest:
        """Which index to build: a share of a gallery waits for the merge with all but `flat`."""
        request = IndexRequest(
            kind=self.recipe.index,  # type: ignore[arg-type]  # checked there
            target_recall=self.recipe.target_recall,
            vectors=self.recipe.vectors,
            device=self.device,
        )
        return request if self.shard is None else replace(request, kind="flat", vectors="float32")


@dataclass(frozen=True)
class Published:
    """What came of it.

    Attributes:
        manifest: of the version that is published now.
        joined: what the join found.
        seconds: `join` and `index`.
        is_new: whether it was made just now; else it would only have been made again.
    """

    manifest: Manifest
    joined: Joined
    seconds: dict[str, float]
    is_new: bool = True


def assemble(
    root: Path,
    pieces: Sequence[Piece],
    plan: Plan,
    progress: Progress | None = None,
    *,
    base: Manifest | None = None,
) -> Published:
    """Make a version of pieces and publish it (lock held).

    Args:
        root: the gallery.
        pieces: what to join.
        plan: what the version is to be.
        progress: told which stage it is at.
        base: of the version that is published, if there is one that would do as well: then
            nothing is published that holds the same.

    Raises:
        InputError: if no item is left.
        OSError: if it cannot be written.
    """
    progress = progress or Progress()
    version = new_version_name(root)
    start_s = time.perf_counter()
    with partial_version(root, version) as folder:
        progress.enter("join")
        joined = _join(pieces, plan, folder)
        joined_s = time.perf_counter()
        if base is not None and _is_same(folder, plan, base):
            prune(root, keep=plan.keep_versions)
            return Published(base, joined, {"join": joined_s - start_s}, is_new=False)
        progress.enter("index", total=joined.count)
        index = _build_index(folder, plan, joined, progress)
        indexed_s = time.perf_counter()
        progress.enter("publish")
        manifest = _manifest(folder, version, plan, joined, index)
        data = manifest.to_bytes()
        (folder / MANIFEST_FILE).write_bytes(data)
        publish(root, folder, Pointer(version, hashlib.sha256(data).hexdigest()))
    prune(root, keep=plan.keep_versions)
    seconds = {"join": joined_s - start_s, "index": indexed_s - joined_s}
    return Published(manifest, joined, seconds)


def _is_same(folder: Path, plan: Plan, base: Manifest) -> bool:
    """Whether a joined version holds what a published one does, however its vectors are rounded.

    Vectors follow from the model and the items, whose hashes are compared.
    """
    planned = (plan.recipe, plan.source, set(plan.roots), plan.model_name, plan.shard)
    if planned != (base.recipe, base.source, set(base.roots), base.model_name, base.shard):
        return False
    names = [ITEMS_FILE, SKIPPED_FILE, EXCLUDED_FILE]
    if plan.modality == "video":
        names.append(FRAME_TIMES_FILE)
    return all(check_file(folder / name, base.files[name]) is None for name in names)


def _join(pieces: Sequence[Piece], plan: Plan, folder: Path) -> Joined:
    joined = join(
        pieces,
        folder,
        dim=plan.dim,
        vectors=plan.request.vectors,
        has_frames=plan.modality == "video",
        keep_places=plan.shard is not None,
        interleaved=plan.interleaved,
        excluded=plan.excluded,
    )
    if not joined.count and plan.shard is None:
        raise InputError("no item would be left, so nothing was published; a gallery needs one")
    write_excluded(plan.excluded, folder / EXCLUDED_FILE)
    return joined


def _build_index(folder: Path, plan: Plan, joined: Joined, progress: Progress) -> IndexInfo:
    shape = (joined.count, plan.dim)
    vectors = open_vectors(folder / VECTORS_FILE, shape, joined.vectors)
    return build_index(plan.request, vectors, folder / INDEX_FILE, progress=progress.advance)


def _manifest(folder: Path, version: str, plan: Plan, joined: Joined, index: IndexInfo) -> Manifest:
    names = version_files(plan.modality, index.kind, is_shard=plan.shard is not None)
    return Manifest(
        format_version=FORMAT_VERSION,
        version=version,
        modality=plan.modality,
        dim=plan.dim,
        count=joined.count,
        index=index,
        vectors=joined.vectors,
        model_fingerprint=plan.model_fingerprint,
        model_name=plan.model_name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files={name: sha256_of(folder / name) for name in names},
        skipped=joined.skipped,
        source=plan.source,
        roots=plan.roots,
        recipe=plan.recipe,
        shard=plan.shard,
    )
