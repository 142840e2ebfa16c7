"""Approximate search: an index proposes, exact scores decide; nothing is ever missing at the end.

Shape letters: Q queries, N rows, E dimensions, K results.
"""

from __future__ import annotations

import numpy as np

from index_builder.indexes.among import scan_rows
from index_builder.indexes.base import OnBlock, Proposer, go_on
from index_builder.indexes.effort import Effort
from index_builder.indexes.exact import MARGIN, ExactIndex
from index_builder.indexes.scan import VectorScan
from index_builder.indexes.scores import rank
from index_builder.vectors import Rows, VectorRows, Vectors

_FACTORS = (1, 8)  # of the effort, while fewer rows are found than are wanted
_FEW_ROWS = 1000  # all of them are looked at in no time
_EXACT_SHARE = 4  # from a quarter of all rows on, looking at all of them costs less


class ApproximateIndex:
    """Inner-product search that may miss some of the best rows."""

    exact = False

    def __init__(self, proposer: Proposer, vectors: VectorRows, effort: Effort) -> None:
        """Hold a proposer, the vectors it was built from, and how hard it is to look."""
        self._proposer = proposer
        self._vectors = vectors
        self._effort = effort
        self._num_rows = vectors.shape[0]
        self._scan = ExactIndex(VectorScan(vectors), vectors)

    def search(self, query_QE: Vectors, k: int) -> tuple[Vectors, Rows]:
        """The best rows found for each query: scores `[Q,K]` float32 and rows `[Q,K]` int64.

        Scores are exact. Best first; equal scores by row. K is min(k, N): where the index finds
        fewer, it looks further, and at last at every row.
        """
        k = min(k, self._num_rows)
        if self._num_rows <= max(_FEW_ROWS, (k + MARGIN) * _EXACT_SHARE):
            return self._scan.search(query_QE, k)
        width = min(max(k * self._effort.refine, k + MARGIN), self._num_rows)
        scores_QK = np.empty((len(query_QE), k), np.float32)
        rows_QK = np.empty((len(query_QE), k), np.int64)
        pending = np.arange(len(query_QE))
        for factor in _FACTORS:
            effort = self._effort.times(factor)
            _, candidates_QW = self._proposer.propose(query_QE[pending], width, effort)
            short = []
            for query, candidates_W in zip(pending, candidates_QW, strict=True):
                scores_W, rows_W = rank(query_QE[query], candidates_W, self._vectors)
                if len(rows_W) < k:
                    short.append(query)
                    continue
                scores_QK[query], rows_QK[query] = scores_W[:k], rows_W[:k]
            pending = np.array(short, dtype=np.int64)
            if not len(pending):
                return scores_QK, rows_QK
        scores_QK[pending], rows_QK[pending] = self._scan.search(query_QE[pending], k)
        return scores_QK, rows_QK

    def search_among(
        self, query_QE: Vectors, k: int, rows_M: Rows, on_block: OnBlock = go_on
    ) -> tuple[Vectors, Rows]:
        """The same among some rows, and exactly; see `SearchIndex.search_among`."""
        return scan_rows(self._vectors, query_QE, k, rows_M, on_block)
