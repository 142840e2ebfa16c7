"""The best of some rows only, exactly, whatever the index.

Id selectors are of no use: GPU indexes ignore them, and approximate ones may find fewer rows than
there are. So the vectors of the rows asked for are read and scored, a block at a time and for all
queries at once. Where nearly all rows are asked for, an exact ranking of all is shorter to read.

Shape letters: Q queries, M rows to choose from, N rows, W rows ranked, K results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from index_builder.indexes.base import OnBlock, go_on
from index_builder.indexes.candidates import Candidates, settle
from index_builder.indexes.scores import exact_scores
from index_builder.vectors import Rows, VectorRows, Vectors

BLOCK_ROWS = 8192
RANKED_AT_ONCE = 256 * 1024  # rows of all queries together, between two looks at the clock
_SPARE = 32

Search = Callable[[Vectors, int], tuple[Vectors, Rows]]


def scan_rows(
    vectors: VectorRows, query_QE: Vectors, k: int, rows_M: Rows, on_block: OnBlock
) -> tuple[Vectors, Rows]:
    """The `k` best of some rows.

    Args:
        vectors: of the gallery.
        query_QE: `[Q,E]` float32, finite.
        k: how many, capped at M.
        rows_M: ascending, without repetition.
        on_block: called before each block; what it raises ends the scan.

    Returns:
        scores `[Q,K]` float32 and rows `[Q,K]` int64; best first, equal scores by row.
    """
    k = min(k, len(rows_M))
    found = [Candidates(query_E, k) for query_E in query_QE]
    for start in range(0, len(rows_M), BLOCK_ROWS):
        on_block()
        some_n = rows_M[start : start + BLOCK_ROWS]
        near_Qn = query_QE @ vectors.rows(some_n).T
        for candidates, near_n in zip(found, near_Qn, strict=True):
            candidates.add(near_n, some_n)

    def score(query_E: Vectors, rows_n: Rows) -> Vectors:
        return exact_scores(query_E, vectors.rows(rows_n))

    return settle(query_QE, found, k, score, on_block)


def first_width(k: int, num_rows: int, num_asked: int) -> int:
    """How many rows of a ranking are likely to hold `k` of those asked for."""
    return min(num_rows, k * num_rows * 5 // (4 * max(1, num_asked)) + _SPARE)


def choose_ranked(
    search: Search,
    widths: Iterable[int],
    query_QE: Vectors,
    k: int,
    rows_M: Rows,
    num_rows: int,
    scan: Callable[[Vectors], tuple[Vectors, Rows]],
    on_block: OnBlock = go_on,
) -> tuple[Vectors, Rows]:
    """The same from an exact ranking of all rows: those not asked for are left out.

    Args:
        search: gives the best W rows of each query, exactly.
        widths: W, ascending, as long as some queries have too few; may be empty.
        query_QE: `[Q,E]`.
        k: how many, at most M.
        rows_M: the rows asked for.
        num_rows: N.
        scan: answers the queries that still have too few.
        on_block: called before some queries are ranked; what it raises ends the search.
    """
    asked_N = np.zeros(num_rows, bool)
    asked_N[rows_M] = True
    scores_QK = np.empty((len(query_QE), k), np.float32)
    rows_QK = np.empty((len(query_QE), k), np.int64)
    pending = np.arange(len(query_QE))
    for width in widths:
        short = []
        together = max(1, RANKED_AT_ONCE // width)
        for at in range(0, len(pending), together):
            on_block()
            some = pending[at : at + together]
            for query, scores_W, rows_W in zip(some, *search(query_QE[some], width), strict=True):
                places = np.flatnonzero(asked_N[rows_W])[:k]
                if len(places) < k:
                    short.append(query)
                    continue
                scores_QK[query], rows_QK[query] = scores_W[places], rows_W[places]
        pending = np.array(short, np.int64)
        if not short:
            return scores_QK, rows_QK
    scores_QK[pending], rows_QK[pending] = scan(query_QE[pending])
    return scores_QK, rows_QK
