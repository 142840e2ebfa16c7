"""The order in which a gallery answers.

Of all rows or of some, by the mean or the best frame, with near-duplicates or without.

Shape letters: Q queries, M rows to choose from, W rows ranked, K results, E dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cots_model.errors import InputError
from index_builder.distinct import distinct_places
from index_builder.gallery import Gallery
from index_builder.indexes.among import RANKED_AT_ONCE
from index_builder.indexes.base import OnBlock
from index_builder.vectors import Rows, Vectors

RankBy = Literal["mean", "frame"]
Ranked = tuple[Vectors, Rows]
"""Scores `[K]` float32 and rows `[K]` int64 of one query, best first, equal scores by row."""

DISTINCT_DEPTH = 16_384
"""So many of the best rows are looked at for distinct ones, or as many as are wanted if more."""

_FIRST_DEPTH = 1024


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How the rows of a gallery are ranked.

    Attributes:
        gallery: where to search.
        rank_by: the score of a video.
        rows_M: the rows to choose from, ascending; `None` for all.
        min_score: rows below this are left out.
        on_block: called between blocks of work; what it raises ends the search.
    """

    gallery: Gallery
    rank_by: RankBy
    rows_M: Rows | None
    min_score: float | None
    on_block: OnBlock

    def best(self, query_QE: Vectors, k: int) -> list[Ranked]:
        """The `k` best rows of each query.

        Raises:
            InputError: if the queries do not fit the gallery, or it has no frames to rank by.
        """
        scores_QK, rows_QK = self._all(query_QE, max(1, k))
        return [
            (scores_K[:kept], rows_K[:kept])
            for scores_K, rows_K in zip(scores_QK, rows_QK, strict=True)
            for kept in [_num_kept(scores_K, self.min_score)]
        ]

    def distinct(self, query_QE: Vectors, k: int, similarity: float) -> list[Ranked]:
        """The `k` best rows of each query that are no near-duplicates of a better one.

        Of an exact ranking the first of them are the same for any k. Of an approximate one they are
        for all k up to some 480, which look at the same rows; a longer list is another search.

        Args:
            query_QE: `[Q,E]` unit vectors.
            k: how many.
            similarity: cosine from which on two rows are taken for one; see `distinct_places`.

        Raises:
            InputError: as `best`.
        """
        found: list[Ranked] = [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(query_QE)
        pending = list(range(len(query_QE)))
        for width in self._widths(k):
            short = []
            ranked = self.best(query_QE[pending], width)
            for query, (scores_W, rows_W) in zip(pending, ranked, strict=True):
                places = distinct_places(
                    self.gallery.vectors, rows_W, similarity, most=k, on_block=self.on_block
                )
                found[query] = scores_W[places], rows_W[places]
                if len(places) < k and len(rows_W) == width:
                    short.append(query)
            pending = short
            if not pending:
                break
        return found

    def _widths(self, k: int) -> Iterator[int]:
        """How many rows to look at, if it was not enough."""
        num_rows = len(self.gallery) if self.rows_M is None else len(self.rows_M)
        most = min(max(DISTINCT_DEPTH, k), num_rows)
        width = 2 * k + 64
        if not self._is_exact:
            width = _FIRST_DEPTH if width <= _FIRST_DEPTH else most
        while width < most:
            yield width
            width = 4 * width if self._is_exact else most
        yield most

    @property
    def _is_exact(self) -> bool:
        return self.gallery.exact or self.rows_M is not None or self.rank_by == "frame"

    def _all(self, query_QE: Vectors, k: int) -> tuple[Vectors, Rows]:
        if self.rank_by == "frame":
            frames = self.gallery.frames
            if frames is None:
                raise InputError(
                    f"gallery {self.gallery.name} holds {self.gallery.manifest.modality} items, "
                    "which have no frames; rank by mean, or search a video gallery"
                )
            return frames.search(query_QE, k, rows_M=self.rows_M, on_block=self.on_block)
        if self.rows_M is not None:
            return self.gallery.search(query_QE, k, rows_M=self.rows_M, on_block=self.on_block)
        at_once = max(1, RANKED_AT_ONCE // k)
        parts = []
        for start in range(0, len(query_QE), at_once):
            self.on_block()
            parts.append(self.gallery.search(query_QE[start : start + at_once], k))
        scores, rows = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(rows)


def _num_kept(scores_K: Vectors, min_score: float | None) -> int:
    """In float64, as scores are sent; a bound may be beyond float32."""
    if min_score is None:
        return len(scores_K)
    return int((scores_K.astype(np.float64) >= min_score).sum())
