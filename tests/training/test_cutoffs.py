"""What a lowest score or share keeps, on matrices one can check by hand."""

import json
from dataclasses import asdict

import numpy as np
import pytest

import training.metrics
from cots_model.errors import InputError
from training.cutoffs import Cutoff, score_cutoffs


def cutoffs_of(score_MN, image_of_pair_P, text_of_pair_P=None, **options) -> list[Cutoff]:
    """Of a text x picture score matrix: the pictures' features are unit axes."""
    score_MN = np.asarray(score_MN, np.float32)
    rows = np.arange(len(score_MN)) if text_of_pair_P is None else np.array(text_of_pair_P)
    axes = np.eye(score_MN.shape[1], dtype=np.float32)
    return score_cutoffs(axes, score_MN, np.array(image_of_pair_P), rows, **options)


def test_cutoffs_of_a_hand_made_matrix() -> None:
    scores = [
        [0.9, 0.1, 0.2, 0.0],  # right: 0.9
        [0.5, 0.8, 0.1, 0.0],  # right: 0.5
        [0.6, 0.5, 0.7, 0.1],  # right: 0.7
        [0.0, 0.9, 0.4, 0.3],  # right: 0.3
    ]
    found = cutoffs_of(scores, [0, 0, 2, 3], kept_percent=(100, 75, 50, 25))
    assert [one.lowest for one in found] == pytest.approx([0.3, 0.5, 0.7, 0.9])
    assert [one.right_percent for one in found] == [100, 75, 50, 25]
    # Of the twelve others 0.8, 0.6, 0.5, 0.9, 0.4 are not below 0.3, and so on.
    expected = [100 * num / 12 for num in (5, 4, 2, 1)]
    assert [one.others_percent for one in found] == pytest.approx(expected)


def test_a_text_that_several_pictures_share_is_right_to_each() -> None:
    found = cutoffs_of([[0.9, 0.4, 0.5]], [0, 1, 1], [0, 0, 0], kept_percent=(100, 50))
    assert [one.lowest for one in found] == pytest.approx([0.4, 0.9])
    assert [one.right_percent for one in found] == [100, 50]  # a pair that came twice counts once
    assert [one.others_percent for one in found] == [100, 0]


def test_shares_are_of_the_best_score_of_the_text() -> None:
    scores = [
        [0.9, 0.45, 0.0],  # right: all of the best
        [0.2, 0.05, 0.4],  # right: half of it
    ]
    found = cutoffs_of(scores, [0, 0], of_best=True, kept_percent=(100, 50))
    assert [one.lowest for one in found] == pytest.approx([0.5, 1])
    assert [one.right_percent for one in found] == [100, 50]
    assert [one.others_percent for one in found] == [50, 25]  # 0.45 and 0.4, then 0.4


def test_a_text_whose_best_score_is_below_nothing_keeps_nothing() -> None:
    scores = [[-0.2, -0.1], [0.5, 0.25]]
    found = cutoffs_of(scores, [1, 0], of_best=True, kept_percent=(100, 50))
    assert [one.lowest for one in found] == [0, 1]
    assert [one.right_percent for one in found] == [50, 50]
    assert [one.others_percent for one in found] == [50, 0]
    (one,) = cutoffs_of([[-0.2, -0.1]], [1], of_best=True, kept_percent=(90,))
    assert one == Cutoff(lowest=0, right_percent=0, others_percent=0)


def test_cutoffs_are_numbers_that_json_has() -> None:
    found = cutoffs_of([[-0.2, -0.1], [0.5, 0.25]], [1, 0], of_best=True)
    assert json.loads(json.dumps([asdict(one) for one in found], allow_nan=False))


def test_no_share_depends_on_the_chunks(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    image_of_pair_P = rng.permutation(np.repeat(np.arange(70), rng.integers(1, 6, 70)))
    scores = rng.normal(size=(len(image_of_pair_P), 70))
    whole = cutoffs_of(scores, image_of_pair_P)
    for one in whole:
        right = scores[np.arange(len(scores)), image_of_pair_P].astype(np.float32)
        assert one.right_percent == pytest.approx(100 * np.mean(right >= np.float32(one.lowest)))
        above = (scores.astype(np.float32) >= np.float32(one.lowest)).sum()
        others = above - (right >= np.float32(one.lowest)).sum()
        assert one.others_percent == pytest.approx(100 * others / (scores.size - len(scores)))
    monkeypatch.setattr(training.metrics, "_SCORES_AT_ONCE", 1)  # 64 texts at a time
    assert cutoffs_of(scores, image_of_pair_P) == whole


def test_pairs_alone_have_no_cutoffs() -> None:
    with pytest.raises(InputError, match="pictures that are not"):
        cutoffs_of([[0.5]], [0])


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        cutoffs_of([[0.5, np.nan], [0.1, 0.2]], [0, 1])
