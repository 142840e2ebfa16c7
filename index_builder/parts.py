"""Finished parts of a build: a fixed stretch of the source, embedded, on disk, with checksums.

    GALLERY/.build/parts/NNNNNN-<key>/
        vectors.npy items.parquet skipped.jsonl [frames.npy frame_times.npy]
        part.json        which entry each row and each skip came of; sha256 of each file

A part appears under its name by a rename, synced to disk, so that every part that is there is
whole; its bytes depend on nothing but what its key was made from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from index_builder.items import Item, write_items
from index_builder.listing import PartSpec
from index_builder.manifest import (
    FRAME_TIMES_FILE,
    FRAMES_FILE,
    ITEMS_FILE,
    SKIPPED_FILE,
    VECTORS_FILE,
    FileInfo,
    check_file,
    sha256_of,
)
from index_builder.publish import UNFINISHED_PART, sync
from index_builder.sources.entry import Skip
from index_builder.vectors import Rows, Vectors

PART_FILE = "part.json"


@dataclass(frozen=True)
class PartRows:
    """What a part holds.

    Attributes:
        items: the items, in order of their entries.
        vectors_NE: their unit vectors, float32.
        offsets: of which entry of the part each item is.
        skips: what was left out, each with the entry it came of.
        frames_NFE: of videos, the unit vectors of the frames, float16.
        times_NF: when they are shown, in seconds, float64.
    """

    items: Sequence[Item]
    vectors_NE: Vectors
    offsets: Sequence[int]
    skips: Sequence[tuple[int, Skip]]
    frames_NFE: np.ndarray | None = None
    times_NF: np.ndarray | None = None


@dataclass(frozen=True)
class Part:
    """A finished part on disk.

    Attributes:
        number: its place in the source.
        folder: where it is.
        offsets_N: of which entry of the part each row is, int64.
        skip_offsets: of which entry each line of `skipped.jsonl` is.
        num_entries: how many entries it was made of.
    """

    number: int
    folder: Path
    offsets_N: Rows
    skip_offsets: tuple[int, ...]
    num_entries: int

    def skips(self) -> Iterator[Skip]:
        """What was left out, in order."""
        return read_skips(self.folder / SKIPPED_FILE)


class _PartInfo(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    num_entries: int
    offsets: tuple[int, ...]
    skip_offsets: tuple[int, ...]
    files: dict[str, FileInfo]


def write_part(parts: Path, spec: PartSpec, rows: PartRows) -> Part:
    """Write a part, replacing what there may be under its name; OSError if it cannot be written."""
    folder = parts / (spec.name + UNFINISHED_PART)
    for leftover in (folder, parts / spec.name):
        if leftover.exists():
            shutil.rmtree(leftover)
    folder.mkdir()
    _write_files(folder, rows)
    info = _PartInfo(
        key=spec.key,
        num_entries=spec.num_entries,
        offsets=tuple(rows.offsets),
        skip_offsets=tuple(offset for offset, _ in rows.skips),
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    )
    (folder / PART_FILE).write_text(info.model_dump_json(), "utf-8")
    for path in folder.iterdir():
        sync(path)
    sync(folder)
    os.rename(folder, parts / spec.name)
    sync(parts)
    return _part(parts / spec.name, spec, info)


def open_part(parts: Path, spec: PartSpec) -> Part | None:
    """A part that an earlier run finished, if it is there and its checksums hold."""
    folder = parts / spec.name
    try:
        info = _PartInfo.model_validate_json((folder / PART_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    if info.key != spec.key or any(
        check_file(folder / name, expected) for name, expected in info.files.items()
    ):
        return None
    return _part(folder, spec, info)


def remove_others(parts: Path, wanted: set[str]) -> None:
    """Remove all parts but those of these names."""
    for folder in parts.iterdir():
        if folder.name not in wanted:
            shutil.rmtree(folder)


def write_skips(skips: Iterator[Skip], path: Path) -> None:
    """Write `skipped.jsonl`."""
    with path.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(asdict(skip), ensure_ascii=False) + "\n" for skip in skips)


def read_skips(path: Path) -> Iterator[Skip]:
    """Read `skipped.jsonl`."""
    with path.open("rb") as lines:
        for line in lines:
            yield Skip(**json.loads(line))


def _write_files(folder: Path, rows: PartRows) -> None:
    np.save(folder / VECTORS_FILE, rows.vectors_NE, allow_pickle=False)
    write_items(rows.items, folder / ITEMS_FILE)
    write_skips((skip for _, skip in rows.skips), folder / SKIPPED_FILE)
    if rows.frames_NFE is not None and rows.times_NF is not None:
        np.save(folder / FRAMES_FILE, rows.frames_NFE, allow_pickle=False)
        np.save(folder / FRAME_TIMES_FILE, rows.times_NF, allow_pickle=False)


def _part(folder: Path, spec: PartSpec, info: _PartInfo) -> Part:
    offsets_N = np.array(info.offsets, dtype=np.int64)
    return Part(spec.number, folder, offsets_N, info.skip_offsets, spec.num_entries)
