"""The FAISS index: built, saved and opened here, and searched exactly.

FAISS decides which rows can be among the best; their scores are then computed again from the
stored vectors, one row at a time in float64 and rounded to float32. So a score depends on nothing
but the two vectors (not on the batch, the BLAS or the GPU), and equal vectors always tie.

Shape letters: Q queries, N rows, E dimensions, K results.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np

from cots_model.errors import GalleryError
from index_builder.vectors import Rows, StoredVectors, VectorRows, Vectors

GPU_MAX_K = 2048
_MARGIN = 32
_HEADER_BYTES = 512


class ExactIndex:
    """Inner-product search over all rows, on the GPU where FAISS has one."""

    exact = True

    def __init__(self, cpu_index: faiss.IndexFlatIP, vectors: VectorRows) -> None:
        """Hold an index and the vectors it was built from."""
        self._cpu = cpu_index
        self._vectors = vectors
        self._num_rows = vectors.shape[0]
        self._gpu = _GpuIndex(cpu_index) if faiss.get_num_gpus() > 0 else None
        self._max_norm = _max_norm(vectors)

    def search(self, query_QE: Vectors, k: int) -> tuple[Vectors, Rows]:
        """The `k` best rows of each query: scores `[Q,K]` float32 and rows `[Q,K]` int64.

        Best first; equal scores by row, also across the k-th place. `k` is capped at N.
        """
        k = min(k, self._num_rows)
        scores_QK = np.empty((len(query_QE), k), np.float32)
        rows_QK = np.empty((len(query_QE), k), np.int64)
        pending = np.arange(len(query_QE))
        width = min(k + _MARGIN, self._num_rows)
        while len(pending):
            found_QW, candidates_QW = self._scan(query_QE[pending], width)
            unsettled = []
            for at, query in enumerate(pending):
                scores_W, rows_W = self._rank(query_QE[query], candidates_QW[at])
                scores_QK[query], rows_QK[query] = scores_W[:k], rows_W[:k]
                tolerance = self._rounding(query_QE[query])
                if width < self._num_rows and found_QW[at, -1] + tolerance >= scores_W[k - 1]:
                    unsettled.append(query)  # a row not looked at could tie with the k-th
            pending = np.array(unsettled, dtype=np.int64)
            width = min(width * 4, self._num_rows)
        return scores_QK, rows_QK

    def _scan(self, query_QE: Vectors, width: int) -> tuple[Vectors, Rows]:
        if self._gpu is not None and width <= GPU_MAX_K:
            return self._gpu.search(query_QE, width)
        found_QW, candidates_QW = self._cpu.search(query_QE, width)
        return found_QW, candidates_QW

    def _rank(self, query_E: Vectors, rows_W: Rows) -> tuple[Vectors, Rows]:
        rows_W = np.sort(rows_W)
        scores_W = exact_scores(query_E, self._vectors.rows(rows_W))
        order = np.argsort(-scores_W, kind="stable")
        return scores_W[order], rows_W[order]

    def _rounding(self, query_E: Vectors) -> float:
        """Bound on the error of FAISS's float32 sum of E products (Higham 2002, eq. 3.5)."""
        dim = len(query_E)
        unit_roundoff = float(np.finfo(np.float32).eps) / 2
        return 2 * dim * unit_roundoff * float(np.linalg.norm(query_E)) * self._max_norm


def exact_scores(query_E: Vectors, vectors_NE: Vectors) -> Vectors:
    """Dot products `[N]`: summed in float64 row by row, rounded once to float32."""
    products_NE = vectors_NE.astype(np.float64) * query_E.astype(np.float64)
    scores: Vectors = products_NE.sum(axis=1).astype(np.float32)
    return scores


def build_flat(blocks: Iterator[Vectors], dim: int, path: Path) -> None:
    """Write an exact index of the vectors `[n,E]` of all blocks, in order; OSError if it cannot."""
    index: faiss.Index = faiss.IndexFlatIP(dim)
    if faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    for block_NE in blocks:
        index.add(np.ascontiguousarray(block_NE))
    if faiss.get_num_gpus() > 0:
        index = faiss.index_gpu_to_cpu(index)
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as err:  # FAISS's own type for a full disk
        raise OSError(f"{path} could not be written: {err}") from err


def open_flat(path: Path, vectors: StoredVectors) -> ExactIndex:
    """Open an index written by `build_flat`.

    The file's length is checked before FAISS parses it; check its sha256 before calling.

    Raises:
        GalleryError: if it is damaged, or does not fit the vectors.
    """
    num_rows, dim = vectors.shape
    payload_bytes = num_rows * dim * 4
    if not payload_bytes <= path.stat().st_size <= payload_bytes + _HEADER_BYTES:
        raise GalleryError(
            f"{path} holds {path.stat().st_size:,} bytes, which does not fit "
            f"{num_rows:,} vectors of {dim}; build the gallery again"
        )
    try:
        index = faiss.read_index(str(path))
    except Exception as err:  # FAISS raises bare RuntimeError, or what SWIG makes of it
        raise GalleryError(f"{path} is damaged ({err}); build the gallery again") from err
    if not isinstance(index, faiss.IndexFlatIP) or (index.ntotal, index.d) != vectors.shape:
        raise GalleryError(f"{path} is not a flat index of these vectors; build the gallery again")
    return ExactIndex(index, vectors)


def index_vectors(path: Path, vectors: VectorRows) -> bool:
    """Whether the index holds exactly these vectors, bit for bit (for `verify`)."""
    index = faiss.read_index(str(path))
    start = 0
    for block_NE in vectors.blocks():
        if not np.array_equal(index.reconstruct_n(start, len(block_NE)), block_NE):
            return False
        start += len(block_NE)
    return True


class _GpuIndex:
    """A copy on the first GPU; its resources serve one thread at a time."""

    def __init__(self, cpu_index: faiss.IndexFlatIP) -> None:
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.index_cpu_to_gpu(self._resources, 0, cpu_index)
        self._lock = threading.Lock()

    def search(self, query_QE: Vectors, width: int) -> tuple[Vectors, Rows]:
        with self._lock:
            found_QW, candidates_QW = self._index.search(query_QE, width)
        return found_QW, candidates_QW


def _max_norm(vectors: VectorRows) -> float:
    return max(float(np.linalg.norm(block_NE, axis=1).max()) for block_NE in vectors.blocks())
