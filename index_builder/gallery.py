"""A gallery opened for reading.

A version folder holds `manifest.json`, `index.faiss`, `vectors.npy` (`[N,E]`, unit rows),
`items.parquet`, `skipped.jsonl` and `excluded.jsonl`, and of videos the vectors of the frames. Rows
are sorted by id (code points), so that ties by row are ties by id. Nothing is ever unpickled.

    gallery = Gallery.open(Path("photos"), expected_fingerprint=encoder.fingerprint)
    scores_QK, rows_QK = gallery.search(encoder.encode_texts(["a dog in snow"]), k=10)
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cots_model.errors import GalleryError, InputError
from index_builder.content import (
    ContentCheck,
    ContentError,
    Location,
    Stamp,
    location_of,
    open_location,
    read_location,
)
from index_builder.filter_rows import RowFilters
from index_builder.frames import VideoFrames, open_frames
from index_builder.indexes.base import OnBlock, SearchIndex, go_on
from index_builder.indexes.open import open_index
from index_builder.items import Item, ItemRows, read_items
from index_builder.manifest import (
    INDEX_FILE,
    ITEMS_FILE,
    VECTORS_FILE,
    FileInfo,
    IndexInfo,
    Manifest,
    check_file,
)
from index_builder.publish import Pointer, read_pointer
from index_builder.query_vectors import checked_queries
from index_builder.vectors import Rows, VectorRows, Vectors, open_vectors
from index_builder.version import read_manifest

__all__ = [
    "FileInfo",
    "Gallery",
    "IndexInfo",
    "Item",
    "ItemNotFoundError",
    "Manifest",
    "OtherModelError",
    "read_manifest",
]

_OPEN_ATTEMPTS = 3


class ItemNotFoundError(InputError):
    """No item of the gallery has this id."""


class OtherModelError(GalleryError):
    """Another model made the gallery."""


class Gallery:
    """One published version, open for searching; safe to use from several threads.

    Attributes:
        root: the gallery folder.
        manifest: of the version.
        filters: finds the rows that meet a filter on metadata.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        vectors: VectorRows,
        items: ItemRows,
        index: SearchIndex,
        frames: VideoFrames | None = None,
    ) -> None:
        """Hold the opened parts; `Gallery.open` is the way here."""
        self._frames = frames
        self._check = ContentCheck()
        self.root = root
        self.manifest = manifest
        self._vectors = vectors
        self._items = items
        self._index = index
        self.filters = RowFilters(items)

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        pointer: Pointer | None = None,
        expected_fingerprint: str | None = None,
        verify_checksums: bool = True,
        device: str = "auto",
    ) -> Gallery:
        """Open the published version.

        Args:
            root: the gallery folder.
            pointer: to the version, where it was read already; else it is read here, and again if
                the version is replaced and removed while it is opened.
            expected_fingerprint: fingerprint of the model that will embed the queries.
            verify_checksums: hash every file before using it (about a second per GB).
            device: where to search, as `open_index` takes it.

        Raises:
            GalleryError: if there is no gallery, a file is damaged (named), or another model made
                it (`OtherModelError`, both fingerprints named).
            CotsError: as `open_index`, for the device.
        """
        options = (expected_fingerprint, verify_checksums, device)
        if pointer is not None:
            return cls._open_version(root, pointer, *options)
        for attempt in range(1, _OPEN_ATTEMPTS + 1):
            pointer = read_pointer(root)
            try:
                return cls._open_version(root, pointer, *options)
            except GalleryError:
                if read_pointer(root) == pointer or attempt == _OPEN_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    @classmethod
    def _open_version(
        cls, root: Path, pointer: Pointer, fingerprint: str | None, checksums: bool, device: str
    ) -> Gallery:
        folder, manifest = read_manifest(root, pointer)
        _check_fingerprint(root, manifest, fingerprint)
        if not manifest.count:
            raise GalleryError(f"{root} is a shard without items; merge it with the others")
        for name, expected in manifest.files.items():
            problem = check_file(folder / name, expected, checksum=checksums)
            if problem:
                raise GalleryError(
                    f"{folder / name} is damaged: {problem}; build the gallery again"
                )
        shape = (manifest.count, manifest.dim)
        frames = open_frames(folder, shape) if manifest.modality == "video" else None
        if manifest.index.kind == "milvus":
            from index_builder.milvus.open import open_collection

            opened = open_collection(manifest, folder)
            return cls(root, manifest, opened.vectors, opened.items, opened.index, frames)
        vectors = open_vectors(folder / VECTORS_FILE, shape, manifest.vectors)
        items = read_items(folder / ITEMS_FILE)
        if len(items) != manifest.count:
            raise GalleryError(
                f"{folder / ITEMS_FILE} has {len(items):,} items but the manifest counts "
                f"{manifest.count:,}; build the gallery again"
            )
        index = open_index(folder / INDEX_FILE, manifest.index, vectors, device=device)
        return cls(root, manifest, vectors, items, index, frames)

    @functools.cached_property
    def name(self) -> str:
        """Name of the gallery: its folder's, or that of the link it was opened by."""
        return os.path.basename(os.path.abspath(self.root))

    @property
    def version(self) -> str:
        """Name of the opened version."""
        return self.manifest.version

    @property
    def exact(self) -> bool:
        """Whether a search of all rows always finds the best ones."""
        return self._index.exact

    def __len__(self) -> int:
        return self.manifest.count

    def search(
        self,
        query_QE: Vectors,
        k: int,
        *,
        rows_M: Rows | None = None,
        on_block: OnBlock = go_on,
    ) -> tuple[Vectors, Rows]:
        """Search for the `k` best items of each query; which, is up to the index (`exact`).

        Args:
            query_QE: `[Q,E]` float32, finite; unit rows give cosines.
            k: how many, capped at the number of items.
            rows_M: the rows to choose from, ascending; these are searched exactly by every index.
            on_block: called before each block of them; what it raises ends the search.

        Returns:
            scores `[Q,K]` float32, the dot products with the stored vectors, and rows `[Q,K]`
            int64; best first, equal scores by id.

        Raises:
            InputError: if the queries' width is not the gallery's, a value is not finite, or k < 1.
        """
        query_QE = checked_queries(query_QE, self.manifest.dim)
        if k < 1:
            raise InputError(f"k is {k}; at least 1 is accepted")
        if rows_M is not None:
            return self._index.search_among(query_QE, k, rows_M, on_block)
        return self._index.search(query_QE, k)

    def item(self, row: int) -> Item:
        """The item of a row; IndexError outside `0 .. len - 1`."""
        self._check_row(row)
        return self._items.item(row)

    def items(self, rows: Sequence[int]) -> list[Item]:
        """The items of some rows, in that order, fetched together; IndexError as `item`."""
        for row in rows:
            self._check_row(row)
        return self._items.items(rows)

    def row(self, item_id: str) -> int:
        """The row of an item.

        Raises:
            ItemNotFoundError: if there is none with this id.
        """
        row = self._items.find(item_id)
        if row is None:
            raise ItemNotFoundError(
                f"gallery {self.name} has no item {item_id!r}; ids are paths relative to the "
                "source, or keys in its shards"
            )
        return row

    def vector(self, row: int) -> Vectors:
        """The stored unit vector `[E]` of a row, float32 (a copy)."""
        self._check_row(row)
        [vector_E] = self._vectors.rows(np.array([row]))
        return np.array(vector_E)

    @property
    def vectors(self) -> VectorRows:
        """All unit vectors, by row, read-only."""
        return self._vectors

    @property
    def frames(self) -> VideoFrames | None:
        """Vectors and times of the frames; `None` unless this is a video gallery."""
        return self._frames

    def ids(self) -> list[str]:
        """All ids, in row order."""
        return self._items.ids()

    def read_content(self, row: int) -> bytes:
        """The original's bytes, checked against the hash taken when it was indexed.

        Raises:
            ContentError: if the original is gone, unreadable or not what was indexed.
        """
        item = self.item(row)
        if item.text is not None:
            return item.text.encode()
        data, _ = read_location(self._location(item))
        if hashlib.sha256(data).hexdigest() != item.sha256:
            raise _changed(item)
        return data

    def open_content(self, row: int) -> BinaryIO:
        """Open the original for reading and seeking; close it after use.

        A file with the size and time it had when indexed is opened as it is; any other is hashed
        first (once, where files have times), which takes as long as reading it does.

        Raises:
            ContentError: as `read_content`.
        """
        item = self.item(row)
        if item.text is not None:
            return io.BytesIO(item.text.encode())
        location = self._location(item)
        handle, stamp = open_location(location)
        if stamp.mtime_s and stamp == Stamp(item.size_bytes, item.mtime_s):
            return handle
        try:
            if not self._check.is_same(location, handle, stamp, item.size_bytes, item.sha256):
                raise _changed(item)
        except BaseException:
            handle.close()
            raise
        return handle

    def _location(self, item: Item) -> Location:
        roots = self.manifest.roots
        return location_of(item.uri, item.offset_bytes, item.size_bytes, roots)

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is not in 0 .. {len(self) - 1}")


def _check_fingerprint(root: Path, manifest: Manifest, expected: str | None) -> None:
    if expected is None or expected == manifest.model_fingerprint:
        return
    raise OtherModelError(
        f"gallery {root} was made by {manifest.model_name} with fingerprint "
        f"{manifest.model_fingerprint}, but the model in use has fingerprint {expected}; use the "
        "checkpoint that made it (--checkpoint), or build the gallery again with this one"
    )


def _changed(item: Item) -> ContentError:
    return ContentError(
        "changed",
        f"{item.uri} is no longer what was indexed as {item.id!r}; build the gallery again",
    )
