"""What must hold in a parsed index before it is searched, whoever wrote the file.

FAISS follows links and row numbers without looking; one that leads outside would crash the
process or show other memory.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from index_builder.indexes.kinds import num_lists
from index_builder.manifest import IndexInfo
from index_builder.vectors import Rows

_faiss: Any = faiss
_CLASSES: dict[str, tuple[type, ...]] = {
    "flat": (faiss.IndexFlatIP, faiss.IndexScalarQuantizer),
    "hnsw": (faiss.IndexHNSWFlat,),
    "ivf": (faiss.IndexIVFFlat,),
    "ivfpq": (faiss.IndexIVFPQ,),
    "cagra": (_faiss.IndexHNSWCagra,),
}


def fault_of(index: Any, info: IndexInfo, shape: tuple[int, int]) -> str | None:
    """What is wrong with an index that should be over `(N, E)` vectors, or `None`."""
    fits = isinstance(index, _CLASSES[info.kind])
    if not fits:
        return f"it is a {type(index).__name__}, which is no {info.kind} index"
    if (index.ntotal, index.d) != shape or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return f"it is over {index.ntotal:,} vectors of {index.d}"
    if info.kind == "cagra" and index.base_level_only:
        return "it has no upper levels, so each search would start at other rows"
    if info.kind in ("hnsw", "cagra"):
        return _hnsw_fault(index, shape)
    if info.kind in ("ivf", "ivfpq"):
        return _ivf_fault(index, info, shape)
    code_bytes = index.code_size * shape[0]
    return None if index.codes.size() == code_bytes else "its vectors are incomplete"


def _hnsw_fault(index: Any, shape: tuple[int, int]) -> str | None:
    num_rows = shape[0]
    hnsw = index.hnsw
    storage = faiss.downcast_index(index.storage)
    if not isinstance(storage, faiss.IndexFlat) or (storage.ntotal, storage.d) != shape:
        return "its vectors are not those of the gallery"
    if storage.codes.size() != num_rows * storage.code_size:
        return "its vectors are incomplete"
    levels_N = faiss.vector_to_array(hnsw.levels)
    ends_L = faiss.vector_to_array(hnsw.cum_nneighbor_per_level)
    if len(levels_N) != num_rows or levels_N.min() < 1 or levels_N.max() >= len(ends_L):
        return "its levels are not whole"
    offsets = faiss.vector_to_array(hnsw.offsets).astype(np.int64)
    wanted = np.concatenate([[0], np.cumsum(ends_L[levels_N].astype(np.int64))])
    links = faiss.vector_to_array(hnsw.neighbors)
    if not np.array_equal(offsets, wanted) or len(links) != wanted[-1]:
        return "its links are not whole"
    if links.min(initial=0) < -1 or links.max(initial=0) >= num_rows:
        return "its links lead outside"
    if not 0 <= hnsw.entry_point < num_rows or hnsw.max_level >= levels_N[hnsw.entry_point]:
        return "its entry point leads outside"
    return _upper_fault(links, offsets, levels_N, ends_L)


def _upper_fault(
    links: np.ndarray, offsets: np.ndarray, levels_N: np.ndarray, ends_L: np.ndarray
) -> str | None:
    """Links of a level must lead to rows that reach that level."""
    for level in range(1, int(levels_N.max())):
        reaching = np.flatnonzero(levels_N > level)
        starts = offsets[reaching] + ends_L[level]
        width = int(ends_L[level + 1] - ends_L[level])
        linked = links[starts[:, None] + np.arange(width)]
        if (levels_N[linked[linked >= 0]] <= level).any():
            return "its links lead outside"
    return None


def _ivf_fault(index: Any, info: IndexInfo, shape: tuple[int, int]) -> str | None:
    num_rows, dim = shape
    quantizer = faiss.downcast_index(index.quantizer)
    if index.nlist != num_lists(num_rows) or info.parameters.get("num_lists") != index.nlist:
        return f"it has {index.nlist:,} lists"
    if not isinstance(quantizer, faiss.IndexFlat) or (quantizer.ntotal, quantizer.d) != (
        index.nlist,
        dim,
    ):
        return "its lists have no centres"
    if not isinstance(faiss.downcast_InvertedLists(index.invlists), faiss.ArrayInvertedLists):
        return "its lists are somewhere else"
    if index.invlists.nlist != index.nlist or index.invlists.code_size != index.code_size:
        return "its lists are not whole"
    if isinstance(index, faiss.IndexIVFPQ):
        pq: Any = index.pq
        fits = pq.M * pq.dsub == dim and pq.centroids.size() == dim * pq.ksub
        if not fits or pq.nbits != 8 or not pq.M == pq.code_size == index.code_size:
            return "its codes do not fit the vectors"
    seen_N = np.zeros(num_rows, np.bool_)
    num_entries = 0
    for number in range(index.nlist):
        ids, _ = list_of(index, number)
        if len(ids) and not (ids.min() >= 0 and ids.max() < num_rows):
            return "its lists lead outside"
        seen_N[ids] = True
        num_entries += len(ids)
    whole = seen_N.all() and num_entries == num_rows
    return None if whole else "its lists do not hold every row once"


def list_of(index: faiss.IndexIVF, number: int) -> tuple[Rows, np.ndarray]:
    """Row numbers `[n]` int64 and codes `[n,C]` uint8 of one list; views of the index's memory."""
    lists: Any = index.invlists
    size, width = lists.list_size(number), index.code_size
    if not size:
        return np.empty(0, np.int64), np.empty((0, width), np.uint8)
    ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
    codes = faiss.rev_swig_ptr(lists.get_codes(number), size * width)
    return ids, codes.reshape(size, width)
