"""How each kind of index is made on the CPU: its parameters, its training, its rows.

Unless told otherwise the same vectors give the same bytes, on one core or many: whatever could
round differently, or come in another order, is done by one thread at a time, in fixed pieces.

Shape letters: N rows, n some of them, E dimensions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np

from cots_model.hardware import num_cores
from index_builder.indexes.threads import threads
from index_builder.manifest import IndexKind, Parameter
from index_builder.vectors import StoredVectors, Vectors

Progress = Callable[[int], object]

HNSW_LINKS = 32
EF_CONSTRUCTION = 100
TRAINING_ROWS_PER_LIST = 128
_TRAINING_ROWS = 65536  # at least, if there are as many
_ENCODED_BLOCK = 4096
_PQ_BITS = 8
_SUBVECTOR_WIDTHS = (4, 5, 3, 6, 2, 7, 8, 1)  # best first; the first that divides E
_ITERATIONS = 12
_SEED = 1234


def parameters_of(kind: IndexKind, shape: tuple[int, int]) -> dict[str, Parameter]:
    """What an index of this kind over `(N, E)` vectors is built with."""
    num_rows, dim = shape
    if kind == "hnsw":
        return {"links": HNSW_LINKS, "ef_construction": EF_CONSTRUCTION}
    if kind == "cagra":
        return {"links": HNSW_LINKS}
    if kind == "ivf":
        return {"num_lists": num_lists(num_rows)}
    if kind == "ivfpq":
        return {"num_lists": num_lists(num_rows), "code_bytes": code_bytes(dim)}
    return {}


def num_lists(num_rows: int) -> int:
    """About 4 sqrt(N), a power of two, and never under 39 rows a list (FAISS's advice)."""
    wanted: int = 1 << round(math.log2(4 * math.sqrt(num_rows)))
    return max(min(wanted, num_rows // 39), 1)


def code_bytes(dim: int) -> int:
    """Bytes of a product-quantised vector: one for every 4 dimensions or so."""
    return dim // next(width for width in _SUBVECTOR_WIDTHS if dim % width == 0)


def empty_index(kind: IndexKind, dim: int, parameters: dict[str, Parameter]) -> Any:
    """An index without training and rows: `hnsw`, `ivf` or `ivfpq`."""
    inner_product = faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        index: Any = faiss.IndexHNSWFlat(dim, int(parameters["links"]), inner_product)
        index.hnsw.efConstruction = int(parameters["ef_construction"])
        return index
    lists = int(parameters["num_lists"])
    quantizer: Any = faiss.IndexFlatIP(dim)
    if kind == "ivf":
        index = faiss.IndexIVFFlat(quantizer, dim, lists, inner_product)
    else:
        size = int(parameters["code_bytes"])
        index = faiss.IndexIVFPQ(quantizer, dim, lists, size, _PQ_BITS, inner_product)
        _set_clustering(index.pq.cp)
    index.own_fields = True
    quantizer.this.disown()
    _set_clustering(index.cp)
    index.cp.spherical = True
    return index


def flat_index(vectors: StoredVectors, progress: Progress) -> Any:
    """All numbers as they are stored: float32 and float16 as such, int8 without the scale."""
    dim, dtype = vectors.shape[1], vectors.stored_NE.dtype
    quantizers = {
        "float16": faiss.ScalarQuantizer.QT_fp16,
        "int8": faiss.ScalarQuantizer.QT_8bit_direct_signed,
    }
    index: Any
    if dtype == np.float32:
        index = faiss.IndexFlatIP(dim)
    else:
        index = faiss.IndexScalarQuantizer(dim, quantizers[dtype.name], faiss.METRIC_INNER_PRODUCT)
    for block_nE in StoredVectors(vectors.stored_NE).blocks():
        index.train(block_nE)  # nothing is learnt; FAISS wants the call
        index.add(block_nE)
        progress(len(block_nE))
    return index


def training_rows(kind: IndexKind, vectors: StoredVectors, lists: int) -> Vectors:
    """Vectors spread evenly over the gallery, `[n,E]`; repeated if they are fewer than 256."""
    num_rows = vectors.shape[0]
    wanted = min(max(lists * TRAINING_ROWS_PER_LIST, _TRAINING_ROWS), num_rows)
    sample_nE = vectors.rows(np.linspace(0, num_rows - 1, wanted).round().astype(np.int64))
    if kind == "ivfpq":
        repeats = max(wanted, 2**_PQ_BITS)
        sample_nE = np.ascontiguousarray(np.resize(sample_nE, (repeats, sample_nE.shape[1])))
    return sample_nE


def train(index: faiss.Index, sample_nE: Vectors) -> None:
    """Learn lists and codes, by one thread: sums of several would round differently."""
    with threads(1):
        index.train(sample_nE)


def add_rows(
    index: faiss.Index, vectors: StoredVectors, progress: Progress, *, reproducible: bool
) -> None:
    """Add all vectors in order."""
    if isinstance(index, faiss.IndexIVF):
        _add_encoded(index, vectors, progress)
        return
    with threads(1 if reproducible else num_cores()):
        for block_nE in vectors.blocks():
            index.add(block_nE)
            progress(len(block_nE))


def _add_encoded(index: faiss.IndexIVF, vectors: StoredVectors, progress: Progress) -> None:
    """Encode fixed blocks on all cores, each by one thread, and append them in order."""
    ahead: deque[Future[np.ndarray]] = deque()
    cores = num_cores()
    with ThreadPoolExecutor(cores, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        for block_nE in vectors.blocks(_ENCODED_BLOCK):
            ahead.append(pool.submit(index.sa_encode, block_nE))
            if len(ahead) > 2 * cores:
                _append(index, ahead.popleft().result(), progress)
        while ahead:
            _append(index, ahead.popleft().result(), progress)


def _append(index: faiss.IndexIVF, codes: np.ndarray, progress: Progress) -> None:
    index.add_sa_codes(codes)
    progress(len(codes))


def _set_clustering(clustering: faiss.ClusteringParameters) -> None:
    clustering.seed = _SEED
    clustering.niter = _ITERATIONS
    clustering.min_points_per_centroid = 1  # no warnings on stderr
    clustering.max_points_per_centroid = 1 << 20  # what is given is what is used
