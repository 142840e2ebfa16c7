"""`cots index update`: look at the source again, and embed only what is new or has changed.

The recipe is in the manifest: same source, same model, same index. Unchanged entries keep their
vectors; their metadata, place and time are taken anew. Items whose original is gone stay unless
told otherwise, and ids that `delete` took out stay out. If all is as it was nothing is published.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cots_model.encoder import Encoder
from cots_model.errors import GalleryError, InputError
from index_builder.build import finish_run, open_inputs, start_run
from index_builder.changes import PublishedBase
from index_builder.indexes.base import IndexRequest
from index_builder.location import is_url
from index_builder.lock import builder_lock
from index_builder.manifest import Manifest
from index_builder.options import BuildOptions, BuildReport, UpdateOptions, UpdatePreview
from index_builder.presence import check_roots
from index_builder.progress import Progress, as_progress
from index_builder.publish import Pointer, read_pointer, writing
from index_builder.sources.stages import with_metadata
from index_builder.version import VersionRows, check_version, read_manifest

_PREVIEW_ATTEMPTS = 3


def update_gallery(
    options: UpdateOptions,
    encoder: Encoder,
    *,
    progress: Callable[[int], object] | Progress | None = None,
) -> BuildReport:
    """Publish a version with what is new and changed; goes on where an interrupted one stopped.

    If that would be the published version again, nothing is published.

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
    check_model(root, manifest, encoder.fingerprint)
    check_whole(root, manifest)
    with writing(root), builder_lock(root):
        base, build = _look(options, read_pointer(root))
        check_model(root, base.manifest, encoder.fingerprint)
        with _one_source(options, build):
            run = start_run(build, encoder, as_progress(progress), base)
        base.source_roots = run.source.roots
        run.roots = tuple(
            root
            for root in base.manifest.roots
            if not options.remove_missing or is_url(root) or os.path.exists(root)
        )
        report = finish_run(run)
    return replace(report, **vars(base.changes(run.gone_rows)))


def preview_update(
    options: UpdateOptions, *, progress: Callable[[int], object] | Progress | None = None
) -> UpdatePreview:
    """List the source and say what an update would find, without a model; nothing is written.

    Args:
        options: of the update.
        progress: told how many entries were listed.

    Raises:
        GalleryError: if there is no gallery, it is damaged, or a share of one.
        InputError: if the source cannot be read.
        CotsError: if the source vanishes.
    """
    root, progress = options.gallery, as_progress(progress)
    for attempt in range(1, _PREVIEW_ATTEMPTS + 1):
        pointer = read_pointer(root)
        try:
            return _preview(options, pointer, progress)
        except GalleryError:  # it may have been replaced and removed meanwhile: nothing is locked
            if read_pointer(root) == pointer or attempt == _PREVIEW_ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


def _preview(options: UpdateOptions, pointer: Pointer, progress: Progress) -> UpdatePreview:
    base, build = _look(options, pointer)
    with _one_source(options, build):
        source, metadata = open_inputs(build)
    base.source_roots = source.roots
    progress.enter("list")
    for _ in base.mark(with_metadata(source.read(), metadata)):
        progress.advance(1)
    check_roots(source.roots)
    progress.enter("done")
    return UpdatePreview(
        gallery=str(options.gallery),
        version=base.manifest.version,
        modality=base.manifest.modality,
        count=base.manifest.count,
        ignored=source.counts.ignored,
        **vars(base.changes()),
    )


def check_model(root: Path, manifest: Manifest, fingerprint: str) -> None:
    """Refuse a gallery that another model made.

    Raises:
        GalleryError: naming both fingerprints.
    """
    if manifest.model_fingerprint != fingerprint:
        raise GalleryError(
            f"gallery {root} was made by {manifest.model_name} with fingerprint "
            f"{manifest.model_fingerprint}, but the model in use has fingerprint {fingerprint}; "
            "update it with the checkpoint that made it (--checkpoint), or build it again"
        )


def check_whole(root: Path, manifest: Manifest) -> None:
    """Refuse a gallery that is only a share of one.

    Raises:
        GalleryError: naming the share.
    """
    if manifest.shard is not None:
        held = ", ".join(map(str, manifest.shard.numbers))
        raise GalleryError(
            f"{root} is only shard {held} of {manifest.shard.of}; `cots index merge` all of them, "
            "and update the merged gallery"
        )


def _look(options: UpdateOptions, pointer: Pointer) -> tuple[PublishedBase, BuildOptions]:
    """The published version, checked, and how to build the next one."""
    root = options.gallery
    folder, manifest = read_manifest(root, pointer)
    check_whole(root, manifest)
    check_version(folder, manifest)
    base = PublishedBase(VersionRows(folder, manifest), pointer.manifest_sha256, options)
    return base, _as_build(options, manifest)


@contextmanager
def _one_source(options: UpdateOptions, build: BuildOptions) -> Iterator[None]:
    """Say what to do where the sources of a merged gallery are no one source."""
    try:
        yield
    except InputError as err:
        if options.sources or len(build.sources) < 2:
            raise
        raise InputError(
            f"{options.gallery} was merged of {', '.join(build.sources)}, which are no one source "
            f"({err}); name one of them behind the gallery, and the items of the others stay"
        ) from err


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
