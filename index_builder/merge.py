"""`cots index merge`: several galleries become one, without embedding anything.

All shards of one build give byte for byte what a build in one piece would have given: each knows
the place in the source of its rows. Other galleries are taken in the order given. An id that comes
twice stays where it came first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cots_model.errors import InputError
from index_builder.assemble import Plan, assemble
from index_builder.delete import ChangeReport, plan_of
from index_builder.indexes.base import IndexRequest
from index_builder.lock import builder_lock
from index_builder.manifest import Manifest, ShardInfo
from index_builder.progress import Progress
from index_builder.publish import writing
from index_builder.version import VersionRows, check_version, read_manifest

_ALIKE = ("model_fingerprint", "dim", "modality")


@dataclass(frozen=True)
class _Input:
    root: Path
    folder: Path
    manifest: Manifest


def merge_galleries(
    roots: Sequence[Path],
    gallery: Path,
    *,
    index: IndexRequest | None = None,
    keep_versions: int = 2,
    progress: Progress | None = None,
) -> ChangeReport:
    """Publish a version of `gallery` that holds the items of several galleries.

    Args:
        roots: galleries, at least two; their order decides between items of one id.
        gallery: the folder to publish into; may be one of `roots`.
        index: another index, or other vectors, than the first of them has.
        keep_versions: how many versions stay.
        progress: told which stage it is at.

    Raises:
        GalleryError: if one is no gallery, or is damaged.
        InputError: if they do not fit together (what differs is named).
        GalleryBusyError: if another build is writing `gallery`.
        CotsError: if the gallery cannot be written.
    """
    if len(roots) < 2:
        raise InputError(f"{len(roots)} gallery was given; at least two can be merged")
    _read(roots)  # no lock file in a new folder if these cannot be merged
    with writing(gallery), builder_lock(gallery):
        inputs, shard = _read(roots)  # `gallery` may be one of them, and have changed
        for one in inputs:
            check_version(one.folder, one.manifest)
        versions = [VersionRows(one.folder, one.manifest) for one in inputs]
        plan = _plan(versions, shard, index, keep_versions)
        pieces = [version.piece(place=place) for place, version in enumerate(versions)]
        published = assemble(gallery, pieces, plan, progress)
    manifest, joined = published.manifest, published.joined
    missing = _missing(manifest.shard)
    return ChangeReport(
        str(gallery),
        manifest.version,
        manifest.count,
        duplicates=joined.duplicates,
        missing_shards=missing,
    )


def _read(roots: Sequence[Path]) -> tuple[list[_Input], ShardInfo | None]:
    inputs = [_Input(root, *read_manifest(root)) for root in roots]
    _check_alike(inputs)
    return inputs, _joined_shard(inputs)


def _check_alike(inputs: Sequence[_Input]) -> None:
    first = inputs[0]
    for other in inputs[1:]:
        for name in _ALIKE:
            one, two = getattr(first.manifest, name), getattr(other.manifest, name)
            if one != two:
                raise InputError(
                    f"{first.root} has {name} {one}, but {other.root} has {two}; only galleries "
                    "of one model and modality can be merged"
                )
        if first.manifest.vectors.type != other.manifest.vectors.type:
            raise InputError(
                f"{first.root} holds {first.manifest.vectors.type} vectors, but {other.root} "
                f"{other.manifest.vectors.type}; build both with the same --vectors"
            )


def _joined_shard(inputs: Sequence[_Input]) -> ShardInfo | None:
    """Which shards of a build come together here; `None` if it is all of them, or no shards."""
    shards = [one.manifest.shard for one in inputs]
    if not any(shards):
        return None
    held = [shard for shard in shards if shard is not None]
    numbers = sorted(number for shard in held for number in shard.numbers)
    recipes = {one.manifest.recipe for one in inputs}
    fits = len(held) == len(inputs) and len({shard.of for shard in held}) == 1
    names = ", ".join(str(one.root) for one in inputs)
    if not fits or len(recipes) > 1 or len(set(numbers)) < len(numbers):
        raise InputError(
            f"{names} are not different shards of one build; merge the n shards that the same "
            "command made with --shard 0/n to n-1/n, then other galleries"
        )
    listings = {shard.listing_sha256 for shard in held}
    if len(listings) > 1:
        raise InputError(
            f"{names} were cut from different listings: the source changed between their builds, "
            "or --part-items differs; build these shards again"
        )
    return ShardInfo(of=held[0].of, numbers=tuple(numbers), listing_sha256=listings.pop())


def _plan(
    versions: Sequence[VersionRows],
    shard: ShardInfo | None,
    index: IndexRequest | None,
    keep_versions: int,
) -> Plan:
    manifests = [version.manifest for version in versions]
    excluded = {
        item_id
        for version in versions
        for item_id in version.excluded()
        if not any(other.items.find_entry(item_id) for other in versions)
    }
    recipe = manifests[0].recipe
    sources = dict.fromkeys(source for m in manifests for source in m.recipe.sources)
    changes: dict[str, object] = {"sources": tuple(sources)}
    if index is not None:
        changes |= {
            "index": index.kind,
            "target_recall": index.target_recall,
            "vectors": index.vectors,
        }
    plan = plan_of(manifests[0], excluded=excluded, keep_versions=keep_versions)
    return replace(
        plan,
        source=", ".join(dict.fromkeys(manifest.source for manifest in manifests)),
        roots=tuple(dict.fromkeys(root for manifest in manifests for root in manifest.roots)),
        recipe=recipe.model_copy(update=changes),
        device=index.device if index else "auto",
        shard=shard if _missing(shard) else None,
        interleaved=True,
    )


def _missing(shard: ShardInfo | None) -> tuple[int, ...]:
    if shard is None:
        return ()
    return tuple(sorted(set(range(shard.of)) - set(shard.numbers)))
