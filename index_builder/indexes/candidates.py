"""Exact search over blocks of rows: matrix products propose, exact scores decide.

A float32 product may be off by its rounding. Whatever could be among the best in spite of it stays
a candidate until the end, and is then scored as everywhere (`exact_scores`).

Shape letters: Q queries, n rows of a block, C candidates, E dimensions, K results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from index_builder.indexes.base import OnBlock
from index_builder.vectors import Rows, Vectors

Score = Callable[[Vectors, Rows], Vectors]
"""The exact scores `[n]` of a query `[E]` and some rows `[n]`."""

_BLOCK = 4096
_MAX_NORM = 1.01  # unit vectors, moved by the rounding of how they are stored
_UNIT_ROUNDOFF = float(np.finfo(np.float32).eps) / 2


class Candidates:
    """The rows that can be among the `k` best of a query."""

    def __init__(self, query_E: Vectors, k: int) -> None:
        norm = float(np.linalg.norm(query_E))
        self._k = k
        # Bound on the error of a float32 sum of E products (Higham 2002, eq. 3.5), on both sides.
        self._slack = 2 * 2 * len(query_E) * _UNIT_ROUNDOFF * norm * _MAX_NORM
        self._least = -np.inf
        self._near_C = np.empty(0, np.float32)
        self.rows_C = np.empty(0, np.int64)

    def add(self, near_n: Vectors, rows_n: Rows) -> None:
        """Take the next rows, which come in order, with their float32 scores."""
        good = near_n >= self._least
        if not good.any():
            return
        near_C = np.concatenate([self._near_C, near_n[good]])
        rows_C = np.concatenate([self.rows_C, rows_n[good]])
        if len(near_C) > self._k:
            self._least = float(np.partition(near_C, -self._k)[-self._k]) - self._slack
            kept = near_C >= self._least
            near_C, rows_C = near_C[kept], rows_C[kept]
        self._near_C, self.rows_C = near_C, rows_C


def settle(
    query_QE: Vectors, found: Sequence[Candidates], k: int, score: Score, on_block: OnBlock
) -> tuple[Vectors, Rows]:
    """The `k` best candidates of each query: scores `[Q,K]` float32 and rows `[Q,K]` int64.

    Best first, equal scores by row; every query has at least `k` candidates.
    """
    scores_QK = np.empty((len(query_QE), k), np.float32)
    rows_QK = np.empty((len(query_QE), k), np.int64)
    for number, (query_E, candidates) in enumerate(zip(query_QE, found, strict=True)):
        rows_C = candidates.rows_C
        scores_C = np.empty(len(rows_C), np.float32)
        for start in range(0, len(rows_C), _BLOCK):
            on_block()
            some = slice(start, start + _BLOCK)
            scores_C[some] = score(query_E, rows_C[some])
        order_K = np.argsort(-scores_C, kind="stable")[:k]
        scores_QK[number], rows_QK[number] = scores_C[order_K], rows_C[order_K]
    return scores_QK, rows_QK
