"""Retrieval metrics on matrices one can check by hand, and against torchmetrics."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalRecall

from cots_model.errors import InputError
from training.metrics import RetrievalMetrics, retrieval_metrics


def metrics_of(score_MN: np.ndarray, owner_M: list[int], **options: int) -> RetrievalMetrics:
    """Metrics of a text x picture score matrix: the pictures' features are unit axes."""
    return retrieval_metrics(np.eye(score_MN.shape[1]), score_MN, np.array(owner_M), **options)


def random_problem(seed: int, num_images: int = 23) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    owner_M = rng.permutation(np.repeat(np.arange(num_images), rng.integers(1, 8, num_images)))
    return rng.normal(size=(num_images, 6)), rng.normal(size=(len(owner_M), 6)), owner_M


def test_metrics_of_a_perfect_matrix():
    metrics = metrics_of(np.eye(12), list(range(12)))
    for side in (metrics.text_to_image, metrics.image_to_text):
        assert (side.r1, side.r5, side.r10, side.median_rank) == (100, 100, 100, 1)
        assert side.num_queries == 12


def test_metrics_of_a_hand_made_matrix():
    """Texts 0 and 1 belong to picture 0, text 2 to picture 1, text 3 to picture 2."""
    score_MN = np.array(
        [
            [0.9, 0.1, 0.2],  # rank 1
            [0.3, 0.8, 0.7],  # rank 3
            [0.6, 0.5, 0.1],  # rank 2
            [0.0, 0.9, 0.4],  # rank 2
        ]
    )
    metrics = metrics_of(score_MN, [0, 0, 1, 2])
    t2i, i2t = metrics.text_to_image, metrics.image_to_text
    assert (t2i.r1, t2i.r5, t2i.median_rank, t2i.num_queries) == (25.0, 100.0, 2.0, 4)
    # Columns: picture 0 finds text 0 first; picture 1 has 0.9, 0.8 before its 0.5.
    assert i2t.r1 == pytest.approx(100 / 3)
    assert (i2t.r5, i2t.median_rank, i2t.num_queries) == (100.0, 2.0, 3)


def test_metrics_put_the_match_at_the_edge_of_each_cut():
    """Text t's own picture has exactly t better ones."""
    num = 12
    score_MN = np.array([np.roll(np.arange(num, 0, -1.0), 0) for _ in range(num)])
    metrics = metrics_of(score_MN, list(range(num)))
    assert metrics.text_to_image.r1 == pytest.approx(100 / 12)
    assert metrics.text_to_image.r5 == pytest.approx(500 / 12)
    assert metrics.text_to_image.r10 == pytest.approx(1000 / 12)
    assert metrics.text_to_image.median_rank == 6.5


def test_metrics_of_a_constant_model_are_chance():
    num = 40
    metrics = metrics_of(np.ones((num, num)), list(range(num)))
    for side in (metrics.text_to_image, metrics.image_to_text):
        assert (side.r1, side.r5, side.r10) == (2.5, 12.5, 25.0)
        assert side.median_rank == 20.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["image", "text"])
def test_metrics_refuse_scores_that_are_not_finite(value, side):
    image_NE, text_ME, owner_M = random_problem(0)
    (image_NE if side == "image" else text_ME)[-1, -1] = value
    with pytest.raises(InputError, match="not finite"):
        retrieval_metrics(image_NE, text_ME, owner_M)


@pytest.mark.parametrize(
    ("owner_M", "says"),
    [
        ([0, 1], "3 texts but 2 picture rows"),
        ([0, 1, 3], "from 0 to 2"),
        ([0, 1, -1], "from 0 to 2"),
        ([0, 1, 1], "every picture needs at least one text"),
    ],
)
def test_metrics_refuse_texts_that_belong_nowhere(owner_M, says):
    with pytest.raises(InputError, match=says):
        metrics_of(np.eye(3), owner_M)


def test_metrics_refuse_no_texts():
    with pytest.raises(InputError, match="every text"):
        metrics_of(np.zeros((0, 3)), [])


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 10_000])
def test_metrics_do_not_depend_on_the_chunk(chunk):
    problem = random_problem(3)
    assert retrieval_metrics(*problem, chunk=chunk) == retrieval_metrics(*problem)


@pytest.mark.parametrize("seed", range(4))
def test_metrics_agree_with_torchmetrics(seed):
    image_NE, text_ME, owner_M = random_problem(seed)
    metrics = retrieval_metrics(image_NE, text_ME, owner_M)
    score_MN = torch.from_numpy(text_ME @ image_NE.T) + 100  # its recall counts positive ones alone
    own_MN = torch.from_numpy(owner_M[:, None] == np.arange(len(image_NE)))
    query_MN = torch.arange(len(text_ME))[:, None].expand_as(own_MN)
    for k, ours in zip((1, 5, 10), (lambda s: s.r1, lambda s: s.r5, lambda s: s.r10), strict=True):
        for metric in (RetrievalHitRate(top_k=k), RetrievalRecall(top_k=k)):
            theirs = metric(score_MN.flatten(), own_MN.flatten(), query_MN.flatten())
            assert ours(metrics.text_to_image) == pytest.approx(100 * theirs.item(), abs=1e-4)
        picture_NM = torch.arange(len(image_NE))[:, None].expand(-1, len(text_ME))
        theirs = RetrievalHitRate(top_k=k)(
            score_MN.T.flatten(), own_MN.T.flatten(), picture_NM.flatten()
        )
        assert ours(metrics.image_to_text) == pytest.approx(100 * theirs.item(), abs=1e-4)


def test_metrics_agree_with_sorting():
    """Ranks by a stable sort, the slow way."""
    image_NE, text_ME, owner_M = random_problem(9)
    score_MN = np.round(text_ME @ image_NE.T)  # many ties
    metrics = metrics_of(score_MN, owner_M.tolist())
    order_MN = np.argsort(-score_MN, axis=1, kind="stable")
    rank_M = [list(order).index(owner) for order, owner in zip(order_MN, owner_M, strict=True)]
    assert metrics.text_to_image.r1 == pytest.approx(100 * np.mean([r < 1 for r in rank_M]))
    assert metrics.text_to_image.r10 == pytest.approx(100 * np.mean([r < 10 for r in rank_M]))
    assert metrics.text_to_image.median_rank == np.median(rank_M) + 1


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 100, 10_000, None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_features_tie_in_every_chunk(chunk, dtype):
    """Five different vectors among all: ranks by counting kinds, without a matrix product."""
    rng = np.random.default_rng(1)
    kind_KE = rng.normal(size=(5, 37)).astype(dtype)
    kind_KE /= np.linalg.norm(kind_KE, axis=1, keepdims=True)
    image_N, text_M = rng.integers(5, size=131), rng.integers(5, size=203)
    owner_M = rng.permutation(np.r_[np.arange(131), rng.integers(131, size=72)])
    score_KK = np.array([[math.fsum(a * b) for b in kind_KE] for a in kind_KE])

    def rank(score: np.ndarray, own: int) -> int:
        return int((score > score[own]).sum() + (score[:own] == score[own]).sum())

    t2i = [rank(score_KK[text_M[t]][image_N], owner_M[t]) for t in range(203)]
    i2t = [
        min(rank(score_KK[image_N[i]][text_M], t) for t in np.flatnonzero(owner_M == i))
        for i in range(131)
    ]
    metrics = retrieval_metrics(kind_KE[image_N], kind_KE[text_M], owner_M, chunk=chunk)
    for side, ranks in ((metrics.text_to_image, t2i), (metrics.image_to_text, i2t)):
        assert side.median_rank == np.median(ranks) + 1
        for k, recall in ((1, side.r1), (5, side.r5), (10, side.r10)):
            assert recall == pytest.approx(100 * np.mean(np.array(ranks) < k))


@pytest.mark.parametrize("num", [41, 1003])
def test_metrics_of_a_constant_model_with_real_features_are_chance(num):
    feature_1E = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    feature_NE = np.repeat(feature_1E, num, axis=0)
    metrics = retrieval_metrics(feature_NE, feature_NE, np.arange(num))
    for side in (metrics.text_to_image, metrics.image_to_text):
        assert side.r1 == pytest.approx(100 / num)
        assert side.median_rank == (num + 1) / 2


def test_metrics_never_hold_the_whole_matrix():
    num_images, num_texts = 3000, 9000
    rng = np.random.default_rng(0)
    image_NE = rng.normal(size=(num_images, 4)).astype(np.float32)
    text_ME = rng.normal(size=(num_texts, 4)).astype(np.float32)
    tracemalloc.start()
    try:
        retrieval_metrics(image_NE, text_ME, np.arange(num_texts) % num_images)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < num_images * num_texts * 4 / 2


def test_a_text_of_several_pictures_finds_the_best_of_them():
    """Text 0 belongs to pictures 1 and 2, text 1 to picture 0; as a loop over all ranks them."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        image_NE, text_ME = rng.normal(size=(7, 4)), rng.normal(size=(5, 4))
        pairs = sorted({(m, m) for m in range(5)} | {(0, 5), (3, 6), (1, 0), (4, 0)})
        text_P, image_P = np.array(pairs).T
        shuffled = rng.permutation(len(pairs))
        metrics = retrieval_metrics(image_NE, text_ME, image_P[shuffled], text_P[shuffled], chunk=2)
        for score_QK, own, recall in (
            (text_ME @ image_NE.T, pairs, metrics.text_to_image),
            (image_NE @ text_ME.T, [(n, m) for m, n in pairs], metrics.image_to_text),
        ):
            ranks = [
                min(int((score_K > score_K[k]).sum()) for q, k in own if q == row)
                for row, score_K in enumerate(score_QK)
            ]
            assert recall.r1 == pytest.approx(100 * np.mean([rank < 1 for rank in ranks]))
            assert recall.r5 == pytest.approx(100 * np.mean([rank < 5 for rank in ranks]))
            assert recall.median_rank == np.median(ranks) + 1


def test_every_text_is_in_a_pair():
    with pytest.raises(InputError, match="every text needs a picture"):
        retrieval_metrics(np.eye(2), np.eye(2), np.array([0, 1]), np.array([0, 0]))
