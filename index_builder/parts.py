"""A build's work in progress: parts of vectors and items, joined into a version at the end.

A part holds the results of a fixed stretch of the source, and appears under its final names by a
rename, so that every part that is there is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from index_builder.indexes.exact import build_flat
from index_builder.items import Item, read_items, write_items
from index_builder.manifest import (
    EXCLUDED_FILE,
    INDEX_FILE,
    ITEMS_FILE,
    SKIPPED_FILE,
    VECTORS_FILE,
    VectorsInfo,
)
from index_builder.sources.entry import Skip
from index_builder.vectors import Vectors, create_array, open_vectors

_PARTS = "parts"


class PartWriter:
    """Writes parts into a partial version's folder, then joins them."""

    def __init__(self, folder: Path, dim: int) -> None:
        """Work in `folder`; vectors have `dim` dimensions."""
        self._folder = folder
        self._parts = folder / _PARTS
        self._parts.mkdir()
        self._dim = dim
        self._sizes: list[int] = []

    @property
    def num_items(self) -> int:
        """Items written so far."""
        return sum(self._sizes)

    def write(self, z_NE: Vectors, items: Sequence[Item], skips: Sequence[Skip]) -> None:
        """Write one part: unit vectors `[N,E]`, their items, and what was skipped among them."""
        part = self._parts / f"{len(self._sizes):06d}.partial"
        part.mkdir()
        np.save(part / VECTORS_FILE, z_NE.reshape(-1, self._dim), allow_pickle=False)
        write_items(items, part / ITEMS_FILE)
        with (part / SKIPPED_FILE).open("w", encoding="utf-8") as handle:
            for skip in skips:
                handle.write(json.dumps(asdict(skip), ensure_ascii=False) + "\n")
        os.rename(part, part.with_suffix(""))
        self._sizes.append(len(items))

    def join(self) -> None:
        """Sort all rows by id, write the version's files, and remove the parts."""
        items = [item for part in self._folders() for item in read_items(part / ITEMS_FILE).all()]
        order = sorted(range(len(items)), key=lambda row: items[row].id)
        self._join_vectors(np.argsort(np.array(order, dtype=np.int64)))
        write_items([items[row] for row in order], self._folder / ITEMS_FILE)
        with (self._folder / SKIPPED_FILE).open("wb") as handle:
            for part in self._folders():
                handle.write((part / SKIPPED_FILE).read_bytes())
        (self._folder / EXCLUDED_FILE).touch()
        shape = (len(items), self._dim)
        vectors = open_vectors(self._folder / VECTORS_FILE, shape, VectorsInfo())
        build_flat(vectors.blocks(), self._dim, self._folder / INDEX_FILE)
        self._remove_parts()

    def _join_vectors(self, row_of_item_N: np.ndarray) -> None:
        shape = (len(row_of_item_N), self._dim)
        out_NE = create_array(self._folder / VECTORS_FILE, shape, np.float32)
        start = 0
        for part, size in zip(self._folders(), self._sizes, strict=True):
            rows = row_of_item_N[start : start + size]
            out_NE[rows] = np.load(part / VECTORS_FILE, allow_pickle=False)
            start += size
        out_NE.flush()

    def _folders(self) -> list[Path]:
        return sorted(self._parts.iterdir())

    def _remove_parts(self) -> None:
        for part in self._folders():
            for path in part.iterdir():
                path.unlink()
            part.rmdir()
        self._parts.rmdir()
