"""Retrieval metrics as pure NumPy: ranks, R@K both ways, median rank.

Shape letters: N pictures, M texts, E joint width, C texts of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cots_model.errors import InputError

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

RECALL_AT = (1, 5, 10)


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
    image_NE: Floats, text_ME: Floats, image_of_text_M: Ints, *, chunk: int = 1024
) -> RetrievalMetrics:
    """Score every text against every picture, and back.

    The rank of a match is the number of candidates strictly better plus the ties that come
    earlier, so that a constant model gets chance, not 100 %. Image to text, the best of a picture's
    own texts counts. Scores are made a chunk at a time; N x M is never held.

    Args:
        image_NE: picture features.
        text_ME: text features.
        image_of_text_M: row of the picture that each text belongs to; any number per picture.
        chunk: queries scored at once.

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
    t2i_M = _ranks(text_ME, image_NE, np.arange(len(text_ME)), image_of_text_M, chunk)
    # One query per (picture, own text) pair; the best of a picture's pairs is its rank.
    i2t_M = _ranks(image_NE, text_ME, image_of_text_M, np.arange(len(text_ME)), chunk)
    best_N = np.full(num_images, np.iinfo(np.int64).max)
    np.minimum.at(best_N, image_of_text_M, i2t_M)
    return RetrievalMetrics(_recall(t2i_M), _recall(best_N))


def _ranks(query_QE: Floats, key_KE: Floats, query_P: Ints, key_P: Ints, chunk: int) -> Ints:
    """Rank from 0 of key `key_P[p]` among all keys for query `query_P[p]`, for every pair p."""
    rank_P = np.empty(len(query_P), np.int64)
    for start in range(0, len(query_P), chunk):
        part = slice(start, start + chunk)
        with np.errstate(all="ignore"):  # checked below
            score_CK = query_QE[query_P[part]] @ key_KE.T
        if not np.isfinite(score_CK).all():
            raise InputError("a score is not finite; the model or its input is broken")
        own_C = key_P[part]
        own_score_C1 = score_CK[np.arange(len(own_C)), own_C][:, None]
        earlier_CK = np.arange(len(key_KE)) < own_C[:, None]
        better_CK = (score_CK > own_score_C1) | ((score_CK == own_score_C1) & earlier_CK)
        rank_P[part] = better_CK.sum(axis=1)
    return rank_P


def _recall(rank_Q: Ints) -> Recall:
    r1, r5, r10 = (100.0 * float((rank_Q < k).mean()) for k in RECALL_AT)
    return Recall(r1, r5, r10, float(np.median(rank_Q)) + 1.0, len(rank_Q))
