"""The builder: list -> decode -> encode -> write parts -> join -> index -> publish.

    report = build_gallery(BuildOptions(sources=("photos",), gallery=Path("g")), encoder)

A source is listed anew by every run; parts that an earlier, interrupted run finished are kept where
they are still what is wanted. So running the same command again after a kill goes on from the last
finished part, and gives the bytes that an uninterrupted run would have given.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cots_model.encoder import Encoder
from cots_model.errors import InputError
from index_builder.assemble import Plan, Published, assemble
from index_builder.base import Base
from index_builder.encode import PartEncoder
from index_builder.join import part_piece
from index_builder.listing import Entry, Listing, PartSpec, shard_info, share
from index_builder.lock import builder_lock
from index_builder.manifest import Recipe
from index_builder.options import BuildOptions, BuildReport, absolute_sources
from index_builder.part_builder import PartBuilder, PartSettings, device_of
from index_builder.parts import Part, open_part, remove_others, write_part
from index_builder.pipeline.background import Background
from index_builder.presence import check_roots, gone_rows, is_back
from index_builder.progress import Progress, as_progress
from index_builder.publish import PARTS, WORK, writing
from index_builder.report import build_report, nothing_indexed
from index_builder.sources.entry import Source
from index_builder.sources.metadata_file import MetadataFile, read_metadata_file
from index_builder.sources.open import open_source
from index_builder.sources.stages import with_metadata


@dataclass
class Run:
    """A build under way.

    Attributes:
        options: what to build.
        encoder: embeds.
        source: what is indexed.
        metadata: columns laid over the items.
        progress: who is told.
        base: what an update starts from.
        roots: where originals lie besides the source's own roots.
        seconds: by stage.
        parts: those that are ready.
        num_continued: how many of them an earlier run had finished.
        num_listed: parts of the whole source.
        gone_rows: of the base, whose original was listed and gone when it was to be read.
        listing_sha256: hash of the listing.
    """

    options: BuildOptions
    encoder: Encoder
    source: Source
    metadata: MetadataFile | None
    progress: Progress
    base: Base = field(default_factory=Base)
    roots: tuple[str, ...] = ()
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    parts: list[Part] = field(default_factory=list)
    num_continued: int = 0
    num_listed: int = 0
    gone_rows: list[int] = field(default_factory=list)
    listing_sha256: str = ""

    @property
    def work(self) -> Path:
        """The folder of work in progress."""
        return self.options.gallery / WORK


def build_gallery(
    options: BuildOptions,
    encoder: Encoder,
    *,
    progress: Callable[[int], object] | Progress | None = None,
) -> BuildReport:
    """Build a version of a gallery and publish it; goes on where an interrupted build stopped.

    Args:
        options: what to build.
        encoder: embeds the originals; its fingerprint goes into the manifest.
        progress: told how far it is; a function is called with the number of entries dealt with
            since the last call.

    Raises:
        InputError: if the source cannot be read or holds nothing that can be indexed.
        GalleryBusyError: if another build is writing this gallery.
        CotsError: if workers cannot be started, the source vanishes, or the gallery cannot be
            written.
    """
    run = start_run(options, encoder, as_progress(progress))
    with writing(options.gallery), builder_lock(options.gallery):
        return finish_run(run)


def start_run(
    options: BuildOptions, encoder: Encoder, progress: Progress, base: Base | None = None
) -> Run:
    """Look at the source and the metadata file; nothing is written yet."""
    if options.engine == "ray":
        _ray_engine()
    elif options.jpeg_decoder == "gpu" and encoder.device.type != "cuda":
        raise InputError(
            f"--jpeg-decoder gpu needs a GPU, and the model runs on {encoder.device}; leave it out"
        )
    source, metadata = open_inputs(options)
    return Run(options, encoder, source, metadata, progress, base or Base())


def open_inputs(options: BuildOptions) -> tuple[Source, MetadataFile | None]:
    """The source, and the metadata file if there is one; raises as `build_gallery`."""
    source = open_source(options.sources, modality=options.modality, exclude=options.gallery)
    return source, read_metadata_file(options.metadata) if options.metadata else None


def finish_run(run: Run) -> BuildReport:
    """Build all parts, join and publish them (lock held)."""
    start_s = time.perf_counter()
    _build_parts(run)
    run.parts.sort(key=lambda part: part.number)
    is_share = run.options.shard is not None and run.num_listed > 0
    parts = [_empty_part(run)] if is_share and not run.parts else run.parts
    pieces = [part_piece(p, part_items=run.options.entries_per_part) for p in parts]
    pieces += run.base.leftover()
    if not is_share and not any(len(piece.places_N) for piece in pieces):
        why = nothing_indexed(run.source, run.options, run.parts)
        shutil.rmtree(run.work)
        raise InputError(why)
    published = assemble(
        run.options.gallery, pieces, _plan(run), run.progress, base=run.base.manifest
    )
    shutil.rmtree(run.work, ignore_errors=True)
    run.progress.enter("done")
    run.seconds.update(published.seconds)
    run.seconds["total"] = time.perf_counter() - start_s
    return _report(run, published)


def _build_parts(run: Run) -> None:
    """Have every part of the source on disk, and no other."""
    listings, parts = run.work / "listing", run.work / PARTS
    shutil.rmtree(listings, ignore_errors=True)
    for folder in (listings, parts):
        folder.mkdir(parents=True, exist_ok=True)
    settings = _settings(run)
    entries = run.base.mark(with_metadata(run.source.read(), run.metadata))
    part_items = run.options.entries_per_part
    listing = Listing(_timed(entries, run), listings, part_items=part_items, key=settings.key)
    names: set[str] = set()
    specs = Background(
        listing.parts(wanted=share(run.options.shard), finished=run.progress.set_total), size=0
    )
    try:
        for part in _engine(run, settings, _unfinished(run, iter(specs), parts, names), parts):
            run.parts.append(part)
    finally:
        specs.stop()
    run.num_listed = listing.num_parts
    run.listing_sha256 = listing.sha256
    check_roots(run.source.roots)
    remove_others(parts, names)
    if run.base.folder is not None:
        for part in run.parts:
            run.gone_rows += gone_rows(part, listings / f"{part.folder.name}.jsonl")


def _empty_part(run: Run) -> Part:
    """What a share holds to which no part of the source has fallen."""
    options = run.options
    rows = PartEncoder(
        run.encoder, modality=options.modality, batch_size=options.batch_size
    ).finish()
    return write_part(run.work / PARTS, PartSpec(0, "", Path(), 0), rows)


def _unfinished(
    run: Run, specs: Iterator[PartSpec], parts: Path, names: set[str]
) -> Iterator[PartSpec]:
    """The parts still to be built; those that an earlier run finished are taken as they are."""
    for spec in specs:
        names.add(spec.name)
        part = open_part(parts, spec)
        if part is None or is_back(part, spec):
            yield spec
        else:
            run.parts.append(part)
            run.num_continued += 1
            run.progress.advance(spec.num_entries, continued=True)


def _engine(
    run: Run, settings: PartSettings, specs: Iterator[PartSpec], parts: Path
) -> Iterator[Part]:
    """Build parts here, or let the workers of a cluster build them into the same folder."""
    if run.options.engine == "ray":
        yield from _ray_engine().build_parts(
            specs,
            parts,
            settings,
            options=run.options,
            advance=run.progress.advance,
            seconds=run.seconds,
        )
        return
    builder = PartBuilder(settings, run.encoder, parts, advance=run.progress.advance)
    try:
        yield from builder.build(specs)
    finally:
        for stage, seconds in builder.seconds.items():
            run.seconds[stage] += seconds


def _ray_engine() -> Any:
    try:
        return importlib.import_module("index_builder.ray_engine")
    except ImportError as err:
        raise InputError(
            f"engine ray is not in this environment ({err}); accepted here: local"
        ) from err


def _settings(run: Run) -> PartSettings:
    options = run.options
    return PartSettings(
        modality=options.modality,
        batch_size=options.batch_size,
        precision=run.encoder.precision,
        device=device_of(run.encoder),
        model_fingerprint=run.encoder.fingerprint,
        segment_seconds=options.segment_seconds,
        jpeg_decoder=options.jpeg_decoder,
        base=run.base.folder,
        base_sha256=run.base.sha256,
        remove_missing=run.base.remove_missing,
        roots=run.source.roots,
        workers=options.num_workers,
        timeout_s=options.decode_timeout_s,
    )


def _timed(entries: Iterator[Entry], run: Run) -> Iterator[Entry]:
    while True:
        start_s = time.perf_counter()
        entry = next(entries, None)
        run.seconds["list"] += time.perf_counter() - start_s
        if entry is None:
            return
        yield entry


def _plan(run: Run) -> Plan:
    options = run.options
    return Plan(
        modality=options.modality,
        dim=run.encoder.dim,
        model_fingerprint=run.encoder.fingerprint,
        model_name=run.encoder.name,
        source=run.source.name,
        roots=tuple(dict.fromkeys((*run.source.roots, *run.roots))),
        recipe=Recipe(
            sources=absolute_sources(options.sources),
            metadata=str(options.metadata.absolute()) if options.metadata else None,
            index=options.index.kind,
            target_recall=options.index.target_recall,
            vectors=options.index.vectors,
            batch_size=options.batch_size,
            precision=run.encoder.precision,
            segment_seconds=options.segment_seconds,
            jpeg_decoder=options.jpeg_decoder,
            checkpoint=options.checkpoint,
        ),
        device=options.index.device,
        shard=shard_info(options.shard, run.listing_sha256),
        excluded=run.base.excluded,
        keep_versions=options.keep_versions,
    )


def _report(run: Run, published: Published) -> BuildReport:
    return build_report(
        run.options,
        published,
        counts=run.source.counts,
        metadata=run.metadata,
        seconds=run.seconds,
        parts=len(run.parts),
        parts_continued=run.num_continued,
    )
