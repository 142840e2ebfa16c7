"""Exact search: rows are proposed, then ranked by their true scores until nothing is in doubt.

FAISS decides which rows can be among the best; their scores are then computed again from the
stored vectors, one row at a time in float64 and rounded to float32. So a score depends on nothing
but the two vectors (not on the batch, the BLAS or the GPU), and equal vectors always tie.

Shape letters: Q queries, N rows, M rows asked for, E dimensions, W rows proposed, K results.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from index_builder.indexes.among import choose_ranked, first_width, scan_rows
from index_builder.indexes.base import OnBlock, Proposer, go_on
from index_builder.indexes.effort import Effort
from index_builder.indexes.scores import exact_scores, rank
from index_builder.vectors import Rows, VectorRows, Vectors

__all__ = ["MARGIN", "ExactIndex", "exact_scores", "rank"]

MARGIN = 32
_MOSTLY = 0.5  # from this share of all rows on, ranking all of them costs less than reading some
_NO_EFFORT = Effort()


class ExactIndex:
    """Inner-product search over all rows.

    The proposer must look at every row, with scores of float32 precision.
    """

    exact = True

    def __init__(self, proposer: Proposer, vectors: VectorRows) -> None:
        """Hold a proposer and the vectors it looks at."""
        self._proposer = proposer
        self._vectors = vectors
        self._num_rows = vectors.shape[0]

    def search(self, query_QE: Vectors, k: int) -> tuple[Vectors, Rows]:
        """The `k` best rows of each query: scores `[Q,K]` float32 and rows `[Q,K]` int64.

        Best first; equal scores by row, also across the k-th place. `k` is capped at N.
        """
        k = min(k, self._num_rows)
        scores_QK = np.empty((len(query_QE), k), np.float32)
        rows_QK = np.empty((len(query_QE), k), np.int64)
        pending = np.arange(len(query_QE))
        width = min(k + MARGIN, self._num_rows)
        while len(pending):
            found_QW, candidates_QW = self._proposer.propose(query_QE[pending], width, _NO_EFFORT)
            unsettled = []
            for at, query in enumerate(pending):
                scores_W, rows_W = rank(query_QE[query], candidates_QW[at], self._vectors)
                scores_QK[query], rows_QK[query] = scores_W[:k], rows_W[:k]
                tolerance = self._rounding(query_QE[query])
                if width < self._num_rows and found_QW[at, -1] + tolerance >= scores_W[k - 1]:
                    unsettled.append(query)  # a row not looked at could tie with the k-th
            pending = np.array(unsettled, dtype=np.int64)
            width = min(width * 4, self._num_rows)
        return scores_QK, rows_QK

    def search_among(
        self, query_QE: Vectors, k: int, rows_M: Rows, on_block: OnBlock = go_on
    ) -> tuple[Vectors, Rows]:
        """The same among some rows; see `SearchIndex.search_among`."""
        k = min(k, len(rows_M))
        widths = []
        if len(rows_M) >= _MOSTLY * self._num_rows:
            widths = [first_width(k, self._num_rows, len(rows_M))]

        def scan(some_QE: Vectors) -> tuple[Vectors, Rows]:
            return scan_rows(self._vectors, some_QE, k, rows_M, on_block)

        return choose_ranked(
            self.search, widths, query_QE, k, rows_M, self._num_rows, scan, on_block
        )

    def _rounding(self, query_E: Vectors) -> float:
        """Bound on the error of a proposed score.

        Twice that of a float32 sum of E products in any order (Higham 2002, eq. 3.5), which leaves
        room for the roundings of int8's scale, on the query's side or on the vectors'.
        """
        terms = len(query_E) + 4
        unit_roundoff = float(np.finfo(np.float32).eps) / 2
        return 2 * terms * unit_roundoff * float(np.linalg.norm(query_E)) * self._max_norm

    @cached_property
    def _max_norm(self) -> float:
        blocks = self._vectors.blocks()
        return max(float(np.linalg.norm(block_NE, axis=1).max()) for block_NE in blocks)
