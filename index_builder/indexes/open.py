"""Opening the index of a version."""

from __future__ import annotations

from pathlib import Path

from index_builder.indexes.base import SearchIndex
from index_builder.indexes.exact import open_flat
from index_builder.manifest import IndexInfo
from index_builder.vectors import StoredVectors


def open_index(
    path: Path, info: IndexInfo, vectors: StoredVectors, *, device: str = "auto"
) -> SearchIndex:
    """Open the index of a version.

    Raises:
        GalleryError: if it is damaged, or does not fit the vectors.
    """
    return open_flat(path, vectors)
