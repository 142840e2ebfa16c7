"""Whether an index holds the vectors it should: for `verify`, which takes the time to look.

Shape letters: N rows, n some of them, E dimensions, C bytes of a code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from cots_model.errors import GalleryError
from index_builder.indexes.faiss_file import read_index
from index_builder.indexes.structure import list_of
from index_builder.indexes.threads import threads
from index_builder.manifest import IndexInfo
from index_builder.vectors import Rows, StoredVectors

_SAMPLE = 20_000
_ENCODED_OTHERWISE = 0.01  # share of codes that another machine's arithmetic may round differently
_BLOCK = 4096


def check_index(path: Path, info: IndexInfo, vectors: StoredVectors) -> str | None:
    """Say what is wrong with an index file, or `None`.

    `flat`, `hnsw`, `ivf` and `cagra` hold the vectors themselves: all are compared, bit for bit.
    `ivfpq` holds codes: those of up to 20,000 vectors are made again.
    """
    try:
        index: Any = read_index(path, info, vectors.shape)
    except GalleryError as err:
        return str(err)
    if info.kind == "flat":
        same = _rows_equal(index, StoredVectors(vectors.stored_NE))
    elif info.kind in ("hnsw", "cagra"):
        same = _rows_equal(faiss.downcast_index(index.storage), vectors)
    elif info.kind == "ivf":
        same = _lists_equal(index, vectors)
    else:
        return _codes_fault(index, vectors)
    return None if same else "it holds other vectors than those of the gallery"


def _rows_equal(index: Any, vectors: StoredVectors) -> bool:
    start = 0
    for block_nE in vectors.blocks():
        if not np.array_equal(index.reconstruct_n(start, len(block_nE)), block_nE):
            return False
        start += len(block_nE)
    return True


def _lists_equal(index: Any, vectors: StoredVectors) -> bool:
    for number in range(index.nlist):
        ids_n, codes_nC = list_of(index, number)
        if not np.array_equal(codes_nC.view(np.float32), vectors.rows(ids_n)):
            return False
    return True


def _codes_fault(index: Any, vectors: StoredVectors) -> str | None:
    """Codes are made of blocks as they were when building, so they come out the same."""
    blocks = -(-vectors.shape[0] // _BLOCK)
    chosen = np.unique(np.linspace(0, blocks - 1, _SAMPLE // _BLOCK + 1).astype(int))
    list_N, code_NC = _codes_by_row(index, vectors.shape[0])
    tried = other = 0
    with threads(1):
        for block in chosen:
            rows = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, vectors.shape[0]))
            block_nE = vectors.rows(rows)
            _, list_n1 = index.quantizer.search(block_nE, 1)
            code_nC = index.sa_encode(block_nE)[:, -index.code_size :]
            same_n = (list_n1[:, 0] == list_N[rows]) & (code_nC == code_NC[rows]).all(axis=1)
            tried += len(rows)
            other += int((~same_n).sum())
    if other <= tried * _ENCODED_OTHERWISE:
        return None
    return f"{other:,} of {tried:,} codes are of other vectors than those of the gallery"


def _codes_by_row(index: Any, num_rows: int) -> tuple[Rows, np.ndarray]:
    """List `[N]` and code `[N,C]` of each row."""
    list_N = np.empty(num_rows, np.int64)
    code_NC = np.empty((num_rows, index.code_size), np.uint8)
    for number in range(index.nlist):
        ids_n, codes_nC = list_of(index, number)
        list_N[ids_n] = number
        code_NC[ids_n] = codes_nC
    return list_N, code_NC
