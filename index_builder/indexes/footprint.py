"""How much memory an index takes, before it is made."""

from __future__ import annotations

from index_builder.indexes.gpu import SCRATCH_BYTES
from index_builder.indexes.kinds import HNSW_LINKS, code_bytes, num_lists
from index_builder.manifest import IndexKind, VectorType

_ITEM_BYTES: dict[VectorType, int] = {"float32": 4, "float16": 2, "int8": 1}
_ID_BYTES = 8
_LINK_BYTES = 4
_HNSW_EXTRA = 1.1  # levels above the lowest, offsets


def index_bytes(kind: IndexKind, shape: tuple[int, int], vectors: VectorType = "float32") -> int:
    """Main memory of an index over `(N, E)` vectors, which is about its file's length, too."""
    num_rows, dim = shape
    full = num_rows * dim * 4
    if kind == "flat":
        return num_rows * dim * _ITEM_BYTES[vectors]
    if kind in ("hnsw", "cagra"):
        return full + int(num_rows * 2 * HNSW_LINKS * _LINK_BYTES * _HNSW_EXTRA)
    centres = num_lists(num_rows) * dim * 4
    if kind == "ivf":
        return full + num_rows * _ID_BYTES + centres
    return num_rows * (code_bytes(dim) + _ID_BYTES) + centres


def gpu_bytes(kind: IndexKind, shape: tuple[int, int]) -> int:
    """GPU memory to search an index: vectors are float32 there however they are stored."""
    return index_bytes(kind, shape) + SCRATCH_BYTES


def gpu_build_bytes(kind: IndexKind, shape: tuple[int, int]) -> int:
    """GPU memory to build it: CAGRA holds a wider graph before it thins it out."""
    wider = shape[0] * 4 * HNSW_LINKS * _LINK_BYTES if kind == "cagra" else 0
    return gpu_bytes(kind, shape) + 2 * wider
