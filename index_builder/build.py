"""The builder: reader -> decode -> encode -> write, joined, timed and published here.

    report = build_gallery(BuildOptions(sources=("photos",), gallery=Path("g")), encoder)

Pictures are decoded by worker processes and a thread that collects from them, while the calling
thread embeds: no stage waits for another unless its own queue is full.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from cots_model.encoder import Encoder
from cots_model.errors import CotsError, InputError
from index_builder.items import Item
from index_builder.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    SKIPPED_FILE,
    IndexInfo,
    Manifest,
    Recipe,
    sha256_of,
    version_files,
)
from index_builder.options import BuildOptions, BuildReport
from index_builder.parts import PartWriter
from index_builder.pipeline.background import Background
from index_builder.pipeline.decode import DecodePool
from index_builder.pipeline.result import Decoded, Result
from index_builder.publish import (
    Pointer,
    builder_lock,
    new_version_name,
    prune,
    publish,
    start_partial,
    version_folder,
)
from index_builder.sources.entry import IMAGE_SUFFIXES, Candidate, Skip, Source
from index_builder.sources.metadata_file import MetadataFile, read_metadata_file
from index_builder.sources.open import open_source
from index_builder.sources.stages import unique, with_metadata
from index_builder.vectors import Vectors

_UNIT_TOLERANCE = 1e-3


@dataclass
class _Run:
    """The state of a build under way."""

    encoder: Encoder
    writer: PartWriter
    batch: list[Decoded] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    first_skip: Skip | None = None
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start


def build_gallery(
    options: BuildOptions, encoder: Encoder, *, progress: Callable[[int], object] | None = None
) -> BuildReport:
    """Build a version of a gallery and publish it.

    Args:
        options: what to build.
        encoder: embeds the pictures; its fingerprint goes into the manifest.
        progress: called with the number of entries dealt with since the last call.

    Raises:
        InputError: if the source cannot be read or holds no picture that can be indexed.
        GalleryBusyError: if another build is writing this gallery.
        CotsError: if workers cannot be started, or the gallery cannot be written.
    """
    start = time.perf_counter()
    source = open_source(options.sources, exclude=options.gallery)
    metadata = read_metadata_file(options.metadata) if options.metadata else None
    version = new_version_name()
    try:
        with builder_lock(options.gallery), _partial(options.gallery, version) as folder:
            run = _Run(encoder, PartWriter(folder, encoder.dim))
            _embed_all(run, options, with_metadata(unique(source.read()), metadata), progress)
            if not run.writer.num_items:
                raise InputError(_nothing_indexed(source, run))
            with run.timed("write"):
                run.writer.join()
                _publish(options, encoder, source, run, folder, version)
    except OSError as err:
        raise CotsError(
            f"{options.gallery} could not be written ({err}); check the disk and its permissions"
        ) from err
    run.seconds["total"] = time.perf_counter() - start
    return _report(options, source, metadata, run, version)


def _embed_all(
    run: _Run,
    options: BuildOptions,
    entries: Iterator[Candidate | Skip],
    progress: Callable[[int], object] | None,
) -> None:
    workers = options.workers or min(os.cpu_count() or 1, 8)
    window = 2 * options.batch_size + 2 * workers
    with DecodePool(
        run.encoder.preprocess, workers=workers, timeout_s=options.decode_timeout_s, window=window
    ) as pool:
        results = Background(pool.decode(entries), size=options.batch_size)
        try:
            for count, result in enumerate(_timed(iter(results), run), start=1):
                _take(run, result.value, options.batch_size)
                if count % options.part_items == 0:
                    _finish_part(run)
                if progress is not None:
                    progress(1)
            _finish_part(run)
        finally:
            results.stop()
        run.seconds["read"], run.seconds["decode"] = pool.read_s, pool.decode_s


def _take(run: _Run, result: Decoded | Skip, batch_size: int) -> None:
    if isinstance(result, Skip):
        _note_skip(run, result)
        return
    run.batch.append(result)
    if len(run.batch) == batch_size:
        _encode(run)


def _encode(run: _Run) -> None:
    if not run.batch:
        return
    with run.timed("encode"):
        img_BCHW = torch.from_numpy(np.concatenate([decoded.pixels_U for decoded in run.batch]))
        z_BE = run.encoder.encode_pixels(img_BCHW)
    norms_B = np.linalg.norm(z_BE, axis=1)
    for decoded, z_E, norm in zip(run.batch, z_BE, norms_B, strict=True):
        candidate = decoded.candidate
        if not abs(norm - 1.0) < _UNIT_TOLERANCE:  # NaN included
            why = f"the model gave a vector of length {norm} for it; a unit vector is needed"
            _note_skip(run, Skip(candidate.id, candidate.uri, "bad_embedding", why))
            continue
        run.vectors.append(z_E)
        run.items.append(
            Item(
                id=candidate.id,
                uri=candidate.uri,
                size_bytes=decoded.stamp.size_bytes,
                mtime_s=decoded.stamp.mtime_s,
                sha256=decoded.sha256,
                offset_bytes=candidate.location.offset_bytes,
                metadata=candidate.metadata,
            )
        )
    run.batch.clear()


def _finish_part(run: _Run) -> None:
    _encode(run)
    if not run.items and not run.skips:
        return
    with run.timed("write"):
        z_NE = np.array(run.vectors, dtype=np.float32)
        run.writer.write(z_NE, run.items, run.skips)
    run.items, run.vectors, run.skips = [], [], []


def _note_skip(run: _Run, skip: Skip) -> None:
    run.skips.append(skip)
    run.skipped[skip.reason] += 1
    run.first_skip = run.first_skip or skip


def _timed(results: Iterator[Result], run: _Run) -> Iterator[Result]:
    while True:
        with run.timed("wait"):
            result = next(results, None)
        if result is None:
            return
        yield result


@contextmanager
def _partial(root: Path, version: str) -> Iterator[Path]:
    """The folder of the version being built; removed again unless it was published."""
    folder = start_partial(root, version)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(
    options: BuildOptions, encoder: Encoder, source: Source, run: _Run, folder: Path, version: str
) -> None:
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        version=version,
        modality="image",
        dim=encoder.dim,
        count=run.writer.num_items,
        index=IndexInfo(kind="flat"),
        model_fingerprint=encoder.fingerprint,
        model_name=encoder.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files={name: sha256_of(folder / name) for name in version_files("image", "flat")},
        skipped=dict(sorted(run.skipped.items())),
        source=source.name,
        roots=source.roots,
        recipe=Recipe(sources=options.sources),
    )
    data = manifest.to_bytes()
    (folder / MANIFEST_FILE).write_bytes(data)
    publish(options.gallery, folder, Pointer(version, hashlib.sha256(data).hexdigest()))
    prune(options.gallery, keep=options.keep_versions)


def _nothing_indexed(source: Source, run: _Run) -> str:
    if run.first_skip is None:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        return (
            f"{source.name} holds no picture ({source.counts.ignored} other files); "
            f"files ending in {suffixes} are indexed; give tar shards as '{source.name}/*.tar'"
        )
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(run.skipped.items()))
    first = f"{run.first_skip.id}: {run.first_skip.message}"
    return (
        f"no picture of {source.name} can be indexed, so nothing was published "
        f"(skipped: {reasons}; the first: {first})"
    )


def _report(
    options: BuildOptions, source: Source, metadata: MetadataFile | None, run: _Run, version: str
) -> BuildReport:
    count = run.writer.num_items
    stages = ("read", "decode", "wait", "encode", "write", "total")
    return BuildReport(
        gallery=str(options.gallery),
        version=version,
        count=count,
        skipped=dict(sorted(run.skipped.items())),
        ignored=source.counts.ignored,
        bad_sidecars=source.counts.bad_sidecars,
        first_bad_sidecar=source.counts.first_bad_sidecar,
        metadata_rows=len(metadata) if metadata else 0,
        metadata_matched=metadata.matched if metadata else 0,
        seconds={stage: round(run.seconds[stage], 3) for stage in stages},
        images_per_s=round(count / run.seconds["total"], 2),
        skipped_file=str(version_folder(options.gallery, version) / SKIPPED_FILE),
    )
