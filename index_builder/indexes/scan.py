"""A scan of the stored vectors themselves, block by block: no index, and no copy of them.

Shape letters: Q queries, n rows of a block, E dimensions, W rows proposed.
"""

from __future__ import annotations

import faiss
import numpy as np

from index_builder.indexes.effort import Effort
from index_builder.indexes.threads import product_threads
from index_builder.vectors import BLOCK, Rows, StoredVectors, VectorRows, Vectors

_CONVERTED_BLOCK = 4096  # float32 rows that stay in the caches until they are scored


class VectorScan:
    """Proposes from every row, with float32 scores."""

    def __init__(self, vectors: VectorRows) -> None:
        """Scan these vectors."""
        self._vectors = vectors
        converted = isinstance(vectors, StoredVectors) and vectors.stored_NE.dtype != np.float32
        self._block = _CONVERTED_BLOCK if converted else BLOCK

    def propose(self, query_QE: Vectors, width: int, effort: Effort) -> tuple[Vectors, Rows]:
        """The best rows of each query: scores and rows `[Q,W]`; `width` is at most N."""
        del effort  # it looks at everything
        scores_QW = np.empty((len(query_QE), 0), np.float32)
        rows_QW = np.empty((len(query_QE), 0), np.int64)
        start = 0
        for block_nE in self._vectors.blocks(self._block):
            with product_threads(*query_QE.shape):
                found_Qw, rows_Qw = faiss.knn(
                    query_QE, block_nE, min(width, len(block_nE)), metric=faiss.METRIC_INNER_PRODUCT
                )
            scores_QW = np.concatenate([scores_QW, found_Qw], axis=1)
            rows_QW = np.concatenate([rows_QW, rows_Qw + start], axis=1)
            if scores_QW.shape[1] > width:
                best_QW = np.argpartition(-scores_QW, width - 1, axis=1)[:, :width]
                scores_QW = np.take_along_axis(scores_QW, best_QW, 1)
                rows_QW = np.take_along_axis(rows_QW, best_QW, 1)
            start += len(block_nE)
        order_QW = np.argsort(-scores_QW, axis=1)
        return np.take_along_axis(scores_QW, order_QW, 1), np.take_along_axis(rows_QW, order_QW, 1)
