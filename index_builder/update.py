"""`cots index update`: look at the source again, and embed only what is new or has changed.

The recipe is in the manifest: same source, same model, same index. Unchanged entries keep their
vectors; their metadata, place and time are taken anew. Items whose original is gone stay unless
told otherwise, and ids that `delete` took out stay out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cots_model.encoder import Encoder
from cots_model.errors import GalleryError, InputError
from index_builder.build import Base, Run, finish_run, start_run
from index_builder.content import ContentError, open_location
from index_builder.indexes.base import IndexRequest
from index_builder.item_join import read_column
from index_builder.join import Piece
from index_builder.listing import Entry
from index_builder.location import is_url, lies_in, place_of
from index_builder.manifest import ITEMS_FILE, SKIPPED_FILE, Manifest
from index_builder.options import BuildOptions, BuildReport, Compare, UpdateOptions
from index_builder.parts import read_skips
from index_builder.presence import OUT_OF_REACH
from index_builder.progress import Progress, as_progress
from index_builder.publish import builder_lock, read_pointer, writing
from index_builder.sources.entry import Candidate, Skip
from index_builder.version import VersionRows, check_version, read_manifest

_LAST_PLACE = 2**62


class PublishedBase(Base):
    """The published version, compared with what the source lists.

    Attributes:
        remove_missing: whether items go whose original is gone.
        source_roots: where the source is that is listed now.
        num_missing: items whose original was not listed, once all is.
        num_excluded: entries that stayed out because they were deleted.
    """

    def __init__(self, rows: VersionRows, sha256: str, options: UpdateOptions) -> None:
        """Take a version, and what an unchanged entry is."""
        self._rows = rows
        self._compare: Compare = options.compare
        self.remove_missing = options.remove_missing
        self._listed_N = np.zeros(rows.manifest.count, bool)
        self._held_N = np.zeros(rows.manifest.count, bool)
        self._out_of_reach: set[str] = set()
        self.source_roots: tuple[str, ...] = ()
        self.folder = rows.folder
        self.sha256 = sha256
        self.excluded = frozenset() if options.restore_deleted else frozenset(rows.excluded())
        self.num_excluded = 0
        self._retried = self._to_be_retried()

    def mark(self, entries: Iterator[Candidate | Skip]) -> Iterator[Entry]:
        """Give unchanged entries their rows, and leave deleted ones out."""
        for value in entries:
            if isinstance(value, Skip):
                if value.reason in OUT_OF_REACH or value.reason == "damaged_shard":
                    self._out_of_reach.add(value.uri)
                yield Entry(value)
            elif value.id in self.excluded:
                self.num_excluded += 1
            else:
                rows = self._rows.items.find_entry(value.id)
                self._listed_N[rows] = True
                if self._is_unchanged(value, rows):
                    yield Entry(value, rows=tuple(rows))
                else:
                    yield Entry(value, old_rows=tuple(rows))

    def leftover(self) -> list[Piece]:
        """The items whose original was not listed, unless they are to be removed."""
        self._hold()
        keep_N = ~self._listed_N & (self._held_N | (not self.remove_missing))
        if not keep_N.any():
            return []
        piece = self._rows.piece(place=_LAST_PLACE, keep_N=keep_N)
        return [replace(piece, skips=lambda: iter(()))]

    @property
    def num_missing(self) -> int:
        """Items whose original was not listed, although the listing looked there."""
        return int((~self._listed_N & ~self._held_N).sum())

    def _hold(self) -> None:
        """Let nothing go that may well be there, where the listing did not look."""
        rows = np.flatnonzero(~self._listed_N)
        if len(rows):
            uris = read_column([self._rows.folder / ITEMS_FILE], "uri").take(rows).to_pylist()
            self._held_N[rows] = [
                self._lies_out_of_reach(uri) or self._is_of_another_source(uri) for uri in uris
            ]

    def _is_of_another_source(self, uri: str) -> bool:
        """Whether an original lies elsewhere and is there, as in a gallery that was merged."""
        place = place_of(uri)
        if any(lies_in(place, root) for root in self.source_roots):
            return False
        return is_url(place) or os.path.exists(place)

    def _lies_out_of_reach(self, uri: str) -> bool:
        while uri and uri not in self._out_of_reach:
            uri = uri[: max(uri.rfind("/"), uri.rfind("#"), 0)]
        return bool(uri)

    def _to_be_retried(self) -> frozenset[str]:
        """Videos of which a part was skipped, or taken out and is wanted again."""
        if self._rows.manifest.modality != "video":
            return frozenset()
        skips = read_skips(self._rows.folder / SKIPPED_FILE)
        broken = {skip.id for skip in skips if skip.reason != "duplicate_id"}
        restored = self._rows.excluded() - self.excluded
        return frozenset(broken | {item_id.rpartition("#t=")[0] for item_id in restored})

    def _is_unchanged(self, candidate: Candidate, rows: list[int]) -> bool:
        if not rows or candidate.id in self._retried:
            return False
        old = self._rows.item(rows[0])
        if candidate.text is not None:
            return candidate.text == old.text
        place = (candidate.uri, candidate.location.offset_bytes)
        stamp = candidate.stamp if place == (old.uri, old.offset_bytes) else None
        if self._compare == "stamp" and stamp is not None and stamp.mtime_s:
            return (stamp.size_bytes, stamp.mtime_s) == (old.size_bytes, old.mtime_s)
        return _sha256(candidate) == old.sha256


def update_gallery(
    options: UpdateOptions,
    encoder: Encoder,
    *,
    progress: Callable[[int], object] | Progress | None = None,
) -> BuildReport:
    """Publish a version with what is new and changed; goes on where an interrupted one stopped.

    Args:
        options: what to do.
        encoder: the model that the gallery was made by.
        progress: as for `build_gallery`.

    Raises:
        GalleryError: if there is no gallery, it is damaged, a share of one, or another model's.
        InputError: if the source cannot be read, or nothing would be left.
        GalleryBusyError: if another build is writing this gallery.
        CotsError: as `build_gallery`.
    """
    root = options.gallery
    _, manifest = read_manifest(root)
    check_can_update(root, manifest, encoder.fingerprint)
    with writing(root), builder_lock(root):
        folder, manifest = read_manifest(root)
        check_can_update(root, manifest, encoder.fingerprint)
        check_version(folder, manifest)
        sha256 = read_pointer(root).manifest_sha256
        base = PublishedBase(VersionRows(folder, manifest), sha256, options)
        build = _as_build(options, manifest)
        run = _start(build, encoder, as_progress(progress), base, options)
        base.source_roots = run.source.roots
        run.roots = tuple(
            root
            for root in manifest.roots
            if not options.remove_missing or is_url(root) or os.path.exists(root)
        )
        return _finish(run, base)


def _start(
    build: BuildOptions,
    encoder: Encoder,
    progress: Progress,
    base: PublishedBase,
    options: UpdateOptions,
) -> Run:
    try:
        return start_run(build, encoder, progress, base)
    except InputError as err:
        if options.sources or len(build.sources) < 2:
            raise
        raise InputError(
            f"{options.gallery} was merged of {', '.join(build.sources)}, which are no one source "
            f"({err}); name one of them behind the gallery, and the items of the others stay"
        ) from err


def check_can_update(root: Path, manifest: Manifest, fingerprint: str) -> None:
    """Refuse what an update would spoil.

    Raises:
        GalleryError: if another model made it (both fingerprints named), or it is only a share.
    """
    if manifest.model_fingerprint != fingerprint:
        raise GalleryError(
            f"gallery {root} was made by {manifest.model_name} with fingerprint "
            f"{manifest.model_fingerprint}, but the model in use has fingerprint {fingerprint}; "
            "update it with the checkpoint that made it (--checkpoint), or build it again"
        )
    if manifest.shard is not None:
        held = ", ".join(map(str, manifest.shard.numbers))
        raise GalleryError(
            f"{root} is only shard {held} of {manifest.shard.of}; `cots index merge` all of them, "
            "and update the merged gallery"
        )


def _finish(run: Run, base: PublishedBase) -> BuildReport:
    report = finish_run(run)
    missing = base.num_missing + run.num_missing
    return replace(report, missing=missing, deleted=base.num_excluded)


def _as_build(options: UpdateOptions, manifest: Manifest) -> BuildOptions:
    recipe = manifest.recipe
    index = options.index or IndexRequest(
        kind=recipe.index,  # type: ignore[arg-type]  # checked there
        target_recall=recipe.target_recall,
        vectors=recipe.vectors,
    )
    metadata = Path(recipe.metadata) if recipe.metadata else None
    if not options.sources and not recipe.sources:
        raise InputError(f"{options.gallery} does not say what it was made from; name SRC")
    return BuildOptions(
        sources=options.sources or recipe.sources,
        gallery=options.gallery,
        modality=manifest.modality,
        index=replace(index, device=options.device),
        batch_size=recipe.batch_size,
        workers=options.workers,
        metadata=options.metadata or metadata,
        decode_timeout_s=options.decode_timeout_s,
        part_items=options.part_items,
        keep_versions=options.keep_versions,
        segment_seconds=recipe.segment_seconds,
        jpeg_decoder=recipe.jpeg_decoder,
        checkpoint=options.checkpoint or recipe.checkpoint,
    )


def _sha256(candidate: Candidate) -> str | None:
    """Hash of the original's bytes; `None` if it cannot be read, so that decoding says why."""
    try:
        handle, _ = open_location(candidate.location)
        with handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]
    except (ContentError, OSError):
        return None
