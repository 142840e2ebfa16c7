"""Retrieval metrics as pure NumPy: ranks, R@K both ways, median rank.

Shape letters: N pictures, M texts, P pairs of them, E joint width, Q queries, K keys, C queries at
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cots_model.errors import InputError

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

RECALL_AT = (1, 5, 10)

_SCORES_AT_ONCE = 2**22  # 16 MiB in float32
_ALIGN = 64  # rows; see _aligned


@dataclass(frozen=True)
class Recall:
    """One direction of retrieval.

    Attributes:
        r1: queries whose match is first, in percent.
        r5: among the first five.
        r10: among the first ten.
        median_rank: median over the queries of the best match's rank, from 1.
        num_queries: queries scored.
    """

    r1: float
    r5: float
    r10: float
    median_rank: float
    num_queries: int


@dataclass(frozen=True)
class RetrievalMetrics:
    """Both directions over one set of pictures and texts."""

    text_to_image: Recall
    image_to_text: Recall


def retrieval_metrics(
    image_NE: Floats,
    text_ME: Floats,
    image_of_pair_P: Ints,
    text_of_pair_P: Ints | None = None,
    *,
    chunk: int | None = None,
) -> RetrievalMetrics:
    """Score every text against every picture, and back.

    The rank of a match is the number of candidates strictly better plus the ties that come
    earlier, so that a constant model gets chance, not 100 %. Of several matches the best counts:
    image to text of a picture's own texts, text to image of the pictures that share the text.
    Scores are made a chunk at a time; N x M is never held, and nothing depends on the chunk:
    candidates with equal features tie in all of them.

    Args:
        image_NE: picture features.
        text_ME: text features.
        image_of_pair_P: row of the picture of each pair; any number of pairs per picture.
        text_of_pair_P: row of the text of each pair; by default each text has one, in its order.
        chunk: queries scored at once; by default as many as make about four million scores.

    Raises:
        InputError: if a score is not finite, a text's picture does not exist, or a picture or text
            is in no pair.
    """
    image_of_pair_P = np.asarray(image_of_pair_P, dtype=np.int64)
    num_images, num_texts = len(image_NE), len(text_ME)
    if text_of_pair_P is None:
        text_of_pair_P = np.arange(num_texts)
    text_of_pair_P = np.asarray(text_of_pair_P, dtype=np.int64)
    if len(text_of_pair_P) != len(image_of_pair_P):
        raise InputError(
            f"{len(text_of_pair_P)} texts but {len(image_of_pair_P)} picture rows for them"
        )
    if (
        0 in (num_texts, len(image_of_pair_P))
        or not 0 <= image_of_pair_P.min() <= image_of_pair_P.max() < num_images
    ):
        raise InputError(f"every text needs the row of its picture, from 0 to {num_images - 1}")
    if len(np.unique(image_of_pair_P)) != num_images:
        raise InputError("every picture needs at least one text; leave out those without")
    if not np.array_equal(np.unique(text_of_pair_P), np.arange(num_texts)):
        raise InputError(f"every text needs a picture, and its row is from 0 to {num_texts - 1}")
    return RetrievalMetrics(
        _recall(_ranks(text_ME, image_NE, _Matches(text_of_pair_P, image_of_pair_P), chunk)),
        _recall(_ranks(image_NE, text_ME, _Matches(image_of_pair_P, text_of_pair_P), chunk)),
    )


class _Matches:
    """The keys that are right for each query."""

    def __init__(self, query_of_pair_P: Ints, key_of_pair_P: Ints) -> None:
        order_P = np.argsort(query_of_pair_P, kind="stable")
        self._key_P = key_of_pair_P[order_P]
        self._ends_Q = np.cumsum(np.bincount(query_of_pair_P))

    def best(self, rows_C: Ints, score_CK: Floats) -> Ints:
        """Of each row's right keys the one with the best score; of ties the first."""
        first, last = (self._ends_Q[rows_C[0] - 1] if rows_C[0] else 0), self._ends_Q[rows_C[-1]]
        counts_C = np.diff(self._ends_Q[rows_C], prepend=first)
        right_CK = np.zeros(score_CK.shape, bool)
        right_CK[np.repeat(np.arange(len(rows_C)), counts_C), self._key_P[first:last]] = True
        best_C: Ints = np.where(right_CK, score_CK, -np.inf).argmax(axis=1)
        return best_C


def scores_in_chunks(
    query_QE: Floats, key_KE: Floats, chunk: int | None = None
) -> Iterator[tuple[Ints, Floats]]:
    """The dot products of all queries with all keys, a chunk of rows `[C]` at a time.

    Raises:
        InputError: if a score is not finite.
    """
    chunk = chunk or max(_ALIGN, _SCORES_AT_ONCE // len(key_KE))
    num_keys, key_KE = len(key_KE), _aligned(key_KE)
    for start in range(0, len(query_QE), chunk):
        rows_C = np.arange(start, min(start + chunk, len(query_QE)))
        with np.errstate(all="ignore"):  # checked below
            score_CK = (_aligned(query_QE[rows_C]) @ key_KE.T)[: len(rows_C), :num_keys]
        if not np.isfinite(score_CK).all():
            raise InputError("a score is not finite; the model or its input is broken")
        yield rows_C, score_CK


def _ranks(query_QE: Floats, key_KE: Floats, matches: _Matches, chunk: int | None) -> Ints:
    """Rank from 0, for every query, of its best match."""
    rank_Q = np.empty(len(query_QE), np.int64)
    for rows_C, score_CK in scores_in_chunks(query_QE, key_KE, chunk):
        own_C1 = matches.best(rows_C, score_CK)[:, None]
        own_score_C1 = np.take_along_axis(score_CK, own_C1, axis=1)
        earlier_CK = np.arange(len(key_KE)) < own_C1
        better_CK = (score_CK > own_score_C1) | ((score_CK == own_score_C1) & earlier_CK)
        rank_Q[rows_C] = better_CK.sum(axis=1)
    return rank_Q


def _aligned(x_BE: Floats) -> Floats:
    """With rows of zeros up to a multiple of 64.

    A matrix product adds in another order at its ragged edges, and so gives equal rows unequal
    scores there: they would no longer tie.
    """
    return np.pad(x_BE, ((0, -len(x_BE) % _ALIGN), (0, 0)))


def _recall(rank_Q: Ints) -> Recall:
    r1, r5, r10 = (100.0 * float((rank_Q < k).mean()) for k in RECALL_AT)
    return Recall(r1, r5, r10, float(np.median(rank_Q)) + 1.0, len(rank_Q))
