"""The adaptive momentum filter against the published numbers and against the statistics module."""

import dataclasses
import math
import statistics

import pytest
import torch

from cots_model.errors import CotsError, InputError
from tests.training.published import norm, published_inputs
from training.errors import TrainingError
from training.filter import AdaptiveMomentumFilter, pair_similarity
from training.queues import PairQueues


def queue_of(similarity_F: list[float], length: int | None = None) -> PairQueues:
    """Queues whose pairs have these similarities."""
    queues = PairQueues(length or len(similarity_F), 2, dtype=torch.float64)
    queues.enqueue(*keys_of(similarity_F), torch.arange(len(similarity_F)))
    return queues


def keys_of(similarity_B: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    cosine_B = torch.tensor(similarity_B, dtype=torch.float64)
    image_BE = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(len(cosine_B), -1)
    return image_BE, torch.stack([cosine_B, (1 - cosine_B**2).sqrt()], dim=1)


def published_queues() -> PairQueues:
    p = published_inputs()
    queues = PairQueues(10, 8, dtype=torch.float64)
    queues.enqueue(p["image_queue_NE"], p["text_queue_NE"], torch.arange(10))
    return queues


def test_filter_gives_the_published_numbers():
    p = published_inputs()
    amf = AdaptiveMomentumFilter()
    result = amf(p["image_key_BE"], p["text_key_BE"], published_queues(), step=0)
    assert result.mean == pytest.approx(0.1987657731, abs=1e-9)
    assert result.std == pytest.approx(0.3699384239, abs=1e-9)
    assert result.threshold == pytest.approx(-0.5411110746, abs=1e-9)
    assert result.similarity_B.tolist() == pytest.approx(
        [0.9255944285, 0.4691499531, 0.3478072212, 0.1854194838], abs=1e-9
    )
    assert result.active
    assert result.keep_B.tolist() == [True] * 4


def test_filter_drops_a_pair_that_does_not_fit():
    p = published_inputs()
    p["text_key_BE"][2] = -p["image_key_BE"][2]
    amf = AdaptiveMomentumFilter()
    result = amf(p["image_key_BE"], p["text_key_BE"], published_queues(), step=0)
    assert result.keep_B.tolist() == [True, True, False, True]
    assert result.similarity_B[2].item() == pytest.approx(-1.0)


@pytest.mark.parametrize("num_sigmas", [0.0, 1.0, 2.0, 3.0])
def test_filter_matches_a_naive_loop(num_sigmas):
    rng = torch.Generator().manual_seed(0)
    queue = (torch.rand(50, generator=rng) * 2 - 1).tolist()
    batch = (torch.rand(200, generator=rng) * 2 - 1).tolist()
    amf = AdaptiveMomentumFilter(num_sigmas=num_sigmas)
    result = amf(*keys_of(batch), queue_of(queue), step=0)
    mean, std = statistics.fmean(queue), statistics.pstdev(queue)
    assert result.mean == pytest.approx(mean, abs=1e-12)
    assert result.std == pytest.approx(std, abs=1e-12)
    assert result.threshold == pytest.approx(mean - num_sigmas * std, abs=1e-12)
    assert result.keep_B.tolist() == [s > mean - num_sigmas * std for s in batch]


def test_filter_is_strict():
    """With similarities 1, 0, 0, 1 and no sigma the threshold is 0.5, which floats hold exactly."""
    batch = [0.5, math.nextafter(0.5, 1.0), math.nextafter(0.5, 0.0)]
    amf = AdaptiveMomentumFilter(num_sigmas=0.0)
    result = amf(*keys_of(batch), queue_of([1.0, 0.0, 0.0, 1.0]), step=0)
    assert result.threshold == 0.5
    assert result.keep_B.tolist() == [False, True, False]


def test_filter_waits_until_the_queue_is_full():
    amf = AdaptiveMomentumFilter()
    queues = queue_of([0.9, 0.8, 0.7], length=4)
    waiting = amf(*keys_of([-1.0, 0.8]), queues, step=0)
    assert not waiting.active
    assert waiting.keep_B.tolist() == [True, True]
    assert waiting.keep_B.dtype == torch.bool
    assert waiting.mean == pytest.approx(0.8)
    assert waiting.std == pytest.approx(statistics.pstdev([0.9, 0.8, 0.7]))
    queues.enqueue(*keys_of([0.8]), torch.arange(1))
    acting = amf(*keys_of([-1.0, 0.8]), queues, step=1)
    assert acting.active
    assert acting.keep_B.tolist() == [False, True]


def test_filter_of_an_empty_queue_keeps_everything():
    result = AdaptiveMomentumFilter()(*keys_of([-1.0, 1.0]), PairQueues(3, 2), step=0)
    assert result.keep_B.tolist() == [True, True]
    assert not result.active
    assert math.isnan(result.mean)
    assert math.isnan(result.std)
    assert math.isnan(result.threshold)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_filter_names_the_step_of_a_similarity_that_is_not_finite(value):
    image_key_BE, text_key_BE = keys_of([0.1, 0.2, 0.3])
    text_key_BE[1] = value
    amf = AdaptiveMomentumFilter()
    with pytest.raises(TrainingError, match=r"1 of 3 .* in the batch of step 41 are not finite"):
        amf(image_key_BE, text_key_BE, PairQueues(3, 2), step=41)
    queues = queue_of([0.1, 0.2])
    queues.text_NE[0] = value
    with pytest.raises(TrainingError, match=r"1 of 2 .* in the queue at step 7 are not finite"):
        amf(*keys_of([0.1]), queues, step=7)
    assert issubclass(TrainingError, CotsError)
    assert not issubclass(TrainingError, InputError)


def test_unfilled_rows_do_not_matter():
    queues = queue_of([0.1, 0.2], length=5)
    queues.image_NE[3] = torch.nan
    result = AdaptiveMomentumFilter()(*keys_of([0.1]), queues, step=0)
    assert result.mean == pytest.approx(0.15)


def test_filter_leaves_queues_and_graph_alone():
    p = published_inputs()
    queues = published_queues()
    before = {name: value.clone() for name, value in queues.state_dict().items()}
    image_key_BE = p["image_key_BE"].requires_grad_()
    result = AdaptiveMomentumFilter()(image_key_BE, p["text_key_BE"], queues, step=0)
    assert not result.similarity_B.requires_grad
    for name, value in queues.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.mean = 0.0


def test_similarity_of_bf16_keys_is_made_in_float32():
    rng = torch.Generator().manual_seed(0)
    image_BE = norm(torch.randn(5, 64, generator=rng)).bfloat16()
    text_BE = norm(torch.randn(5, 64, generator=rng)).bfloat16()
    similarity_B = pair_similarity(image_BE, text_BE)
    assert similarity_B.dtype == torch.float32
    assert torch.equal(similarity_B, pair_similarity(image_BE.float(), text_BE.float()))


@pytest.mark.parametrize("num_sigmas", [math.nan, math.inf])
def test_filter_refuses_what_is_no_threshold(num_sigmas):
    with pytest.raises(ValueError, match="gives no threshold"):
        AdaptiveMomentumFilter(num_sigmas=num_sigmas)
