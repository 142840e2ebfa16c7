"""`cots index delete`: a version without some items.

The ids are remembered in `excluded.jsonl`, so that an update does not bring back what is still in
the source. The originals are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cots_model.errors import InputError
from index_builder.assemble import Plan, Published, assemble
from index_builder.gallery import ItemNotFoundError
from index_builder.lock import builder_lock
from index_builder.manifest import Manifest
from index_builder.progress import Progress
from index_builder.publish import read_pointer, writing
from index_builder.report import counted
from index_builder.version import VersionRows, check_version, read_manifest

_NAMED = 10


@dataclass(frozen=True)
class ChangeReport:
    """What was changed without embedding anything.

    Attributes:
        gallery: the gallery folder.
        version: the version published.
        count: items it holds.
        deleted: items taken out.
        duplicates: of a merge, items left out because their id was taken.
        missing_shards: of a merge, shards still to be merged.
    """

    gallery: str
    version: str
    count: int
    deleted: int = 0
    duplicates: int = 0
    missing_shards: tuple[int, ...] = ()


def delete_items(
    root: Path, ids: Sequence[str], *, keep_versions: int = 2, progress: Progress | None = None
) -> ChangeReport:
    """Publish a version without some items; the id of a segmented video stands for all segments.

    Args:
        root: the gallery.
        ids: what to take out; one that comes twice counts once.
        keep_versions: how many versions stay.
        progress: told which stage it is at.

    Raises:
        GalleryError: if there is no gallery, or it is damaged.
        ItemNotFoundError: if an id is in no row; nothing is changed.
        InputError: if no id is given, or no item would be left.
        GalleryBusyError: if another build is writing this gallery.
        CotsError: if the gallery cannot be written.
    """
    if not ids:
        raise InputError("no id was given; name at least one to be deleted")
    read_pointer(root)  # no lock file in a folder that is no gallery
    with writing(root), builder_lock(root):
        folder, manifest = read_manifest(root)
        check_version(folder, manifest)
        rows = VersionRows(folder, manifest)
        keep_N = _keep(root, rows, ids)
        plan = plan_of(manifest, excluded=rows.excluded() | set(ids), keep_versions=keep_versions)
        published = assemble(root, [rows.piece(keep_N=keep_N)], plan, progress)
    return _report(root, published, deleted=int((~keep_N).sum()))


def plan_of(manifest: Manifest, *, excluded: set[str], keep_versions: int) -> Plan:
    """A new version that differs from a published one in its items only."""
    return Plan(
        modality=manifest.modality,
        dim=manifest.dim,
        model_fingerprint=manifest.model_fingerprint,
        model_name=manifest.model_name,
        source=manifest.source,
        roots=manifest.roots,
        recipe=manifest.recipe,
        shard=manifest.shard,
        excluded=frozenset(excluded),
        keep_versions=keep_versions,
    )


def _keep(root: Path, rows: VersionRows, ids: Sequence[str]) -> np.ndarray:
    keep_N = np.ones(rows.manifest.count, bool)
    unknown = []
    for item_id in ids:
        found = rows.items.find_entry(item_id)
        keep_N[found] = False
        if not found:
            unknown.append(item_id)
    if unknown:
        more = f" and {len(unknown) - _NAMED:,} more" if len(unknown) > _NAMED else ""
        names = ", ".join(repr(item_id) for item_id in unknown[:_NAMED])
        raise ItemNotFoundError(
            f"gallery {root} has no item {names}{more}; nothing was deleted; give ids as hits "
            "have them"
        )
    if not keep_N.any():
        raise InputError(
            f"nothing of the {counted(len(keep_N), 'item')} of {root} would be left, and a gallery "
            "needs one; remove the folder to be rid of it"
        )
    return keep_N


def _report(root: Path, published: Published, *, deleted: int) -> ChangeReport:
    manifest = published.manifest
    return ChangeReport(str(root), manifest.version, manifest.count, deleted=deleted)
