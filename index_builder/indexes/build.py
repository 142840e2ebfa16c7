"""Building the index of a version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cots_model.errors import InputError
from index_builder.indexes.base import IndexRequest
from index_builder.indexes.exact import build_flat
from index_builder.manifest import IndexInfo
from index_builder.vectors import StoredVectors


def build_index(
    request: IndexRequest,
    vectors: StoredVectors,
    path: Path,
    *,
    progress: Callable[[int], object] | None = None,
) -> IndexInfo:
    """Build and write the index that is asked for; OSError if it cannot be written."""
    if request.kind not in ("flat", "auto"):
        raise InputError(f"index {request.kind!r} is not available in this version; accepted: flat")
    build_flat(vectors.blocks(), vectors.shape[1], path)
    return IndexInfo(kind="flat")
