"""Retrieval metrics as pure NumPy: ranks, R@K both ways, median rank.

Shape letters: N pictures, M texts, E joint width, Q queries, K keys, C queries of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
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
    image_NE: Floats, text_ME: Floats, image_of_text_M: Ints, *, chunk: int | None = None
) -> RetrievalMetrics:
    """Score every text against every picture, and back.

    The rank of a match is the number of candidates strictly better plus the ties that come
    earlier, so that a constant model gets chance, not 100 %. Image to text, the best of a picture's
    own texts counts. Scores are made a chunk at a time; N x M is never held, and nothing depends on
    the chunk: candidates with equal features tie in all of them.

    Args:
        image_NE: picture features.
        text_ME: text features.
        image_of_text_M: row of the picture that each text belongs to; any number per picture.
        chunk: queries scored at once; by default as many as make about four million scores.

    Raises:
        InputError: if a score is not finite, a text's picture does not exist, or one has no text.
    """
    image_of_text_M = np.asarray(image_of_text_M, dtype=np.int64)
    num_images = len(image_NE)
    if len(text_ME) != len(image_of_text_M):
        raise InputError(f"{len(text_ME)} texts but {len(image_of_text_M)} picture rows for them")
    if len(text_ME) == 0 or not 0 <= image_of_text_M.min() <= image_of_text_M.max() < num_images:
        raise InputError(f"every text needs the row of its picture, from 0 to {num_images - 1}")
    if len(np.unique(image_of_text_M)) != num_images:
        raise InputError("every picture needs at least one text; leave out those without")

    def own_image(rows_C: Ints, _: Floats) -> Ints:
        return image_of_text_M[rows_C]

    def best_own_text(rows_C: Ints, score_CM: Floats) -> Ints:
        own_CM = image_of_text_M == rows_C[:, None]
        best_C: Ints = np.where(own_CM, score_CM, -np.inf).argmax(axis=1)  # of ties the first
        return best_C

    return RetrievalMetrics(
        _recall(_ranks(text_ME, image_NE, own_image, chunk)),
        _recall(_ranks(image_NE, text_ME, best_own_text, chunk)),
    )


def _ranks(
    query_QE: Floats, key_KE: Floats, own: Callable[[Ints, Floats], Ints], chunk: int | None
) -> Ints:
    """Rank from 0, for every query, of the key that `own` names for its row and scores."""
    chunk = chunk or max(_ALIGN, _SCORES_AT_ONCE // len(key_KE))
    num_keys, key_KE = len(key_KE), _aligned(key_KE)
    rank_Q = np.empty(len(query_QE), np.int64)
    for start in range(0, len(query_QE), chunk):
        rows_C = np.arange(start, min(start + chunk, len(query_QE)))
        with np.errstate(all="ignore"):  # checked below
            score_CK = (_aligned(query_QE[rows_C]) @ key_KE.T)[: len(rows_C), :num_keys]
        if not np.isfinite(score_CK).all():
            raise InputError("a score is not finite; the model or its input is broken")
        own_C1 = own(rows_C, score_CK)[:, None]
        own_score_C1 = np.take_along_axis(score_CK, own_C1, axis=1)
        earlier_CK = np.arange(num_keys) < own_C1
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
