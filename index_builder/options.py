"""What a build is asked to do, and what it reports."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cots_model.errors import InputError
from index_builder.indexes.base import IndexRequest
from index_builder.manifest import MODALITIES, JpegDecoder, Modality
from index_builder.sources.entry import Unit

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = ("local", "ray")
Compare = Literal["stamp", "hash"]

_PART_ITEMS: dict[Modality, int] = {"image": 1024, "video": 64, "text": 1024}
_SHORTEST_SEGMENT_S = 0.001  # ids tell milliseconds
_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build.

    Attributes:
        sources: a folder, shards and patterns, a manifest, or urls.
        gallery: the folder to publish into.
        modality: what the items are.
        index: which index to build, and how vectors are stored.
        batch_size: pictures, frames or texts embedded at once.
        workers: decoding processes; 0 takes the number of CPU cores, at most 8.
        metadata: a csv, json, jsonl or parquet file with columns for the items.
        decode_timeout_s: a picture, or a step of a video, that takes longer is skipped.
        part_items: entries of the source per part; 0 is 1024, and 64 for videos.
        keep_versions: how many versions stay, the new one included.
        segment_seconds: length of the segments that long videos are cut into, if they are.
        jpeg_decoder: `gpu` decodes plain JPEGs on the encoder's GPU; vectors differ a little.
        shard: `(i, n)` builds only every n-th part, from the i-th on; `merge` joins the galleries.
        engine: where parts are built: in this process, or on a Ray cluster.
        checkpoint: what the encoder was loaded from, for the recipe and for other machines.
        device: where the encoder runs, for other machines.
    """

    sources: tuple[str, ...]
    gallery: Path
    modality: Modality = "image"
    index: IndexRequest = field(default_factory=IndexRequest)
    batch_size: int = 32
    workers: int = 0
    metadata: Path | None = None
    decode_timeout_s: float = 60.0
    part_items: int = 0
    keep_versions: int = 2
    segment_seconds: float | None = None
    jpeg_decoder: JpegDecoder = "cpu"
    shard: tuple[int, int] | None = None
    engine: Engine = "local"
    checkpoint: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.batch_size < 1 or self.keep_versions < 1:
            raise InputError("--batch-size and --keep-versions must be at least 1")
        if self.workers < 0 or self.part_items < 0:
            raise InputError("--workers and --part-items must be 0 or more")
        if not self.decode_timeout_s > 0:
            raise InputError(
                f"--decode-timeout is {self.decode_timeout_s:g} seconds; it must be above 0"
            )
        if self.modality not in MODALITIES:
            accepted = ", ".join(MODALITIES)
            raise InputError(f"unknown modality {self.modality!r}; accepted: {accepted}")
        if self.engine not in ENGINES:
            raise InputError(f"unknown engine {self.engine!r}; accepted: {', '.join(ENGINES)}")
        if self.engine == "ray" and self.checkpoint is None:
            raise InputError("--checkpoint must be given with --engine ray: other machines load it")
        if self.jpeg_decoder == "gpu" and self.modality != "image":
            raise InputError("--jpeg-decoder gpu is for pictures; leave it out for other galleries")
        if self.segment_seconds is not None:
            self._check_segments(self.segment_seconds)
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise InputError(
                f"--shard {self.shard[0]}/{self.shard[1]} is none; i/n counts from 0/n to n-1/n"
            )

    def _check_segments(self, seconds: float) -> None:
        if self.modality != "video":
            raise InputError(
                f"segments are for videos, and this is a gallery of modality {self.modality}; "
                "leave --segment-seconds out"
            )
        if not _SHORTEST_SEGMENT_S <= seconds < math.inf:
            raise InputError(
                f"--segment-seconds is {seconds:g}; it must be a number of {_SHORTEST_SEGMENT_S:g} "
                "or more"
            )

    @property
    def entries_per_part(self) -> int:
        """`part_items`, or what it is by default."""
        return self.part_items or _PART_ITEMS[self.modality]

    @property
    def num_workers(self) -> int:
        """`workers`, or what it is by default."""
        return self.workers or min(os.cpu_count() or 1, 8)


@dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """What an update does; anything left out is as the published version was built.

    Attributes:
        gallery: the gallery.
        sources: where to look instead of where the last build did.
        metadata: another metadata file.
        index: another index, or other vectors.
        compare: by what an original counts as unchanged: `stamp` (place, size, time) or `hash`.
        remove_missing: drop items whose original is no longer there.
        restore_deleted: let ids back in that `delete` took out.
        workers: as for a build.
        decode_timeout_s: as for a build.
        part_items: as for a build.
        keep_versions: as for a build.
        checkpoint: what the encoder was loaded from.
        device: where the index is built.
    """

    gallery: Path
    sources: tuple[str, ...] = ()
    metadata: Path | None = None
    index: IndexRequest | None = None
    compare: Compare = "stamp"
    remove_missing: bool = False
    restore_deleted: bool = False
    workers: int = 0
    decode_timeout_s: float = 60.0
    part_items: int = 0
    keep_versions: int = 2
    checkpoint: str | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What an update found in the source beside the published version; of a build nothing.

    Attributes:
        new: entries that the version has no item of.
        changed: entries whose original is another one now.
        unchanged: entries taken over without embedding them again.
        touched: of the unchanged, those with other metadata, another place or another time.
        retried: entries tried again, since they, or parts of them, were skipped or taken out.
        unreadable: entries that could not be read to be compared; their items stay.
        missing: items whose original is no longer there.
        gone: the ids of these, in order.
        deleted: entries that stayed out because `delete` took them out.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    touched: int = 0
    retried: int = 0
    unreadable: int = 0
    missing: int = 0
    gone: tuple[str, ...] = ()
    deleted: int = 0


@dataclass(frozen=True, kw_only=True)
class UpdatePreview(Changes):
    """What an update would find.

    Attributes:
        gallery: the gallery folder.
        version: the version that is published, and stays so.
        modality: what the items are.
        count: items that it holds.
        ignored: files that are nothing to be indexed, or empty lines.
        dry_run: that nothing was embedded or written.
    """

    gallery: str
    version: str
    modality: Modality
    count: int
    ignored: int
    dry_run: Literal[True] = True


@dataclass(frozen=True, kw_only=True)
class BuildReport(Changes):
    """What was built.

    Attributes:
        gallery: the gallery folder.
        version: the version published, or, of an update that found nothing to do, the one before.
        published: whether that is a new one.
        modality: what the items are.
        segment_seconds: length of the segments that long videos were cut into, if they were.
        count: items indexed; segments count each.
        skipped: entries left out, by reason.
        ignored: files that are nothing to be indexed, or empty lines.
        ignored_unit: `file` or `line`, whichever these are.
        bad_sidecars: metadata files beside originals that could not be read.
        first_bad_sidecar: what was wrong with the first of them.
        metadata_rows: rows of the metadata file.
        metadata_matched: items that had a row there.
        parts: parts that the source was cut into (of this shard).
        parts_continued: how many of them an earlier, interrupted run had finished.
        index: kind of the index, and why where that was chosen.
        seconds: by stage: `list`, `read`, `decode` (all workers together), `wait` (for decoded
            pictures), `encode`, `write` (parts), `join`, `index` and `total`.
        images_per_s: items indexed per second of the whole build.
        skipped_file: where the skipped ones are listed.
    """

    gallery: str
    version: str
    published: bool
    modality: Modality
    segment_seconds: float | None
    count: int
    skipped: dict[str, int]
    ignored: int
    ignored_unit: Unit
    bad_sidecars: int
    first_bad_sidecar: str | None
    metadata_rows: int
    metadata_matched: int
    parts: int
    parts_continued: int
    index: dict[str, str]
    seconds: dict[str, float]
    images_per_s: float
    skipped_file: str


def absolute_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    """SRC as a later update can read it from anywhere: paths absolute, urls as they are."""
    return tuple(one if _URL.match(one) else os.path.abspath(one) for one in sources)
