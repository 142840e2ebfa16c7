"""What a build is asked to do, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cots_model.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build.

    Attributes:
        sources: one folder, or tar shards and patterns.
        gallery: the folder to publish into.
        batch_size: pictures embedded at once.
        workers: decoding processes; 0 takes the number of CPU cores, at most 8.
        metadata: a csv, json, jsonl or parquet file with columns for the items.
        decode_timeout_s: a picture that takes longer to decode is skipped.
        part_items: entries of the source per part written.
        keep_versions: how many versions stay, the new one included.
    """

    sources: tuple[str, ...]
    gallery: Path
    batch_size: int = 32
    workers: int = 0
    metadata: Path | None = None
    decode_timeout_s: float = 60.0
    part_items: int = 4096
    keep_versions: int = 2

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1 or self.part_items < 1 or self.keep_versions < 1:
            raise InputError("batch_size, part_items and keep_versions must be at least 1")
        if self.workers < 0 or self.decode_timeout_s <= 0:
            raise InputError("workers must be 0 or more, and decode_timeout_s above 0")


@dataclass(frozen=True)
class BuildReport:
    """What was built.

    Attributes:
        gallery: the gallery folder.
        version: the version published.
        count: items indexed.
        skipped: pictures left out, by reason.
        ignored: files that are no pictures.
        bad_sidecars: metadata files beside pictures that could not be read.
        first_bad_sidecar: what was wrong with the first of them.
        metadata_rows: rows of the metadata file.
        metadata_matched: items that had a row there.
        seconds: by stage: `read`, `decode` (all workers together), `wait` (for decoded pictures),
            `encode`, `write` and `total`.
        images_per_s: items indexed per second of the whole build.
        skipped_file: where the skipped ones are listed.
    """

    gallery: str
    version: str
    count: int
    skipped: dict[str, int]
    ignored: int
    bad_sidecars: int
    first_bad_sidecar: str | None
    metadata_rows: int
    metadata_matched: int
    seconds: dict[str, float]
    images_per_s: float
    skipped_file: str
