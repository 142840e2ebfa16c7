"""What a lowest score, or share of the best score, keeps of the right pictures and of the others.

Shape letters: N pictures, M texts, P pairs of them, E joint width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cots_model.errors import InputError
from training.metrics import Floats, Ints, scores_in_chunks

KEPT_PERCENT = (99, 95, 90, 80, 70, 50)


@dataclass(frozen=True)
class Cutoff:
    """One lowest score, or lowest share of a text's best score.

    Attributes:
        lowest: pictures with less are left out.
        right_percent: of the pairs of a text and a picture of its own, those that stay.
        others_percent: of all other pairs, those that stay. Some are as good: a picture is right
            only to the texts that it came with.
    """

    lowest: float
    right_percent: float
    others_percent: float


def score_cutoffs(
    image_NE: Floats,
    text_ME: Floats,
    image_of_pair_P: Ints,
    text_of_pair_P: Ints,
    *,
    of_best: bool = False,
    kept_percent: Sequence[int] = KEPT_PERCENT,
) -> list[Cutoff]:
    """The highest cutoff that keeps so many of the right pictures, for each of `kept_percent`.

    Args:
        image_NE: picture features.
        text_ME: text features.
        image_of_pair_P: row of the picture of each pair.
        text_of_pair_P: row of the text of each pair.
        of_best: take each score as a share of the best one of its text. A text whose best score is
            not above 0 keeps nothing at any share.
        kept_percent: of the pairs, from 1 to 100; fewer are kept where that cannot be had.

    Raises:
        InputError: if a score is not finite, or there is no other pair.
    """
    pairs_P2 = np.unique(np.stack([text_of_pair_P, image_of_pair_P], axis=1), axis=0)
    num_others = len(image_NE) * len(text_ME) - len(pairs_P2)
    if not num_others:
        raise InputError("every picture is right to every text; cutoffs need pictures that are not")
    chunks = functools.partial(_chunks, text_ME, image_NE, of_best)
    right_P = np.concatenate([_of_pairs(rows_C, x_CN, pairs_P2) for rows_C, x_CN in chunks()])
    ascending_P = np.sort(right_P)
    lowest_T = ascending_P[[len(right_P) * (100 - kept) // 100 for kept in kept_percent]]
    least = right_P[np.isfinite(right_P)].min(initial=0)
    lowest_T = np.where(np.isfinite(lowest_T), lowest_T, least)
    stay_T = np.zeros(len(lowest_T), np.int64)
    for _, x_CN in chunks():
        stay_T += _count(x_CN, lowest_T)
    right_T = _count(right_P, lowest_T)
    return [
        Cutoff(
            float(lowest),
            float(100 * right / len(right_P)),
            float(100 * (stay - right) / num_others),
        )
        for lowest, right, stay in zip(lowest_T, right_T, stay_T, strict=True)
    ]


def _chunks(text_ME: Floats, image_NE: Floats, of_best: bool) -> Iterator[tuple[Ints, Floats]]:
    for rows_C, score_CN in scores_in_chunks(text_ME, image_NE):
        if of_best:
            best_C1 = score_CN.max(axis=1, keepdims=True)
            none_CN = np.full_like(score_CN, -np.inf)
            score_CN = np.divide(score_CN, best_C1, out=none_CN, where=best_C1 > 0)
        yield rows_C, score_CN


def _of_pairs(rows_C: Ints, score_CN: Floats, pairs_P2: Ints) -> Floats:
    """The scores of the pairs, in order of their texts, whose texts are these rows."""
    first, last = np.searchsorted(pairs_P2[:, 0], [rows_C[0], rows_C[-1] + 1])
    text_P, image_P = pairs_P2[first:last].T
    scores: Floats = score_CN[text_P - rows_C[0], image_P]
    return scores


def _count(scores: Floats, lowest_T: Floats) -> Ints:
    """How many are not below each."""
    return np.array([np.count_nonzero(scores >= lowest) for lowest in lowest_T])
