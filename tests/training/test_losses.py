"""The instance-level loss against the published numbers and against a naive loop."""

import math

import pytest
import torch

from tests.training.published import published_inputs
from training.losses import contrast_loss, instance_loss, negatives

TAU = 0.05


@pytest.fixture
def published() -> dict[str, torch.Tensor]:
    return published_inputs()


def naive(query_BE, key_BE, queue_NE, negative_BN, tau):
    """Eq. 6 to 9, one number at a time."""
    total = 0.0
    for b in range(len(query_BE)):
        positive = math.exp(float(query_BE[b] @ key_BE[b]) / tau)
        rest = sum(
            math.exp(float(query_BE[b] @ queue_NE[n]) / tau)
            for n in range(len(queue_NE))
            if negative_BN[b, n]
        )
        total -= math.log(positive / (positive + rest))
    return total / len(query_BE)


def test_instance_loss_gives_the_published_numbers(published):
    loss = instance_loss(**published, temperature=TAU)
    assert loss.image_to_text.dtype == torch.float64
    assert loss.image_to_text.item() == pytest.approx(4.3522316497, abs=1e-9)
    assert loss.text_to_image.item() == pytest.approx(11.7008264503, abs=1e-9)
    assert loss.total.item() == pytest.approx(16.0530581000, abs=1e-9)


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_instance_loss_matches_a_naive_loop(published, tau):
    rng = torch.Generator().manual_seed(0)
    published["negative_BN"] = torch.rand(4, 10, generator=rng) < 0.5
    loss = instance_loss(**published, temperature=tau)
    p = published
    i2t = naive(p["image_BE"], p["text_key_BE"], p["text_queue_NE"], p["negative_BN"], tau)
    t2i = naive(p["text_BE"], p["image_key_BE"], p["image_queue_NE"], p["negative_BN"], tau)
    assert loss.image_to_text.item() == pytest.approx(i2t, abs=1e-12)
    assert loss.text_to_image.item() == pytest.approx(t2i, abs=1e-12)


def test_instance_loss_ignores_unfilled_rows(published):
    filled_N = torch.arange(10) < 6
    p = published
    p["negative_BN"] = negatives(
        filled_N, torch.arange(10), torch.arange(20, 24), mask_same_image=True
    )
    reference = instance_loss(**p).total
    short = p | {
        "image_queue_NE": p["image_queue_NE"][:6],
        "text_queue_NE": p["text_queue_NE"][:6],
        "negative_BN": p["negative_BN"][:, :6],
    }
    assert instance_loss(**short).total.item() == pytest.approx(reference.item(), abs=1e-12)
    for name in ("image_queue_NE", "text_queue_NE"):
        p[name] = p[name].clone()
        p[name][6:] = 1e3
    assert torch.equal(instance_loss(**p).total, reference)


def test_instance_loss_of_empty_queues_is_zero_with_finite_gradient(published):
    published["negative_BN"] = torch.zeros(4, 10, dtype=torch.bool)
    published["image_BE"].requires_grad_()
    loss = instance_loss(**published).total
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(published["image_BE"].grad, torch.zeros(4, 8, dtype=torch.float64))


def test_instance_loss_ignores_other_captions_of_the_same_picture(published):
    filled_N = torch.ones(10, dtype=torch.bool)
    queue_image_id_N = torch.tensor([7, 1, 2, 3, 4, 7, 6, 9, 8, 9])
    image_id_B = torch.tensor([7, 50, 9, 51])
    p = published
    p["negative_BN"] = negatives(filled_N, queue_image_id_N, image_id_B, mask_same_image=True)
    expected = torch.ones(4, 10, dtype=torch.bool)
    expected[0, [0, 5]] = False
    expected[2, [7, 9]] = False
    assert torch.equal(p["negative_BN"], expected)
    i2t = naive(p["image_BE"], p["text_key_BE"], p["text_queue_NE"], expected, TAU)
    assert instance_loss(**p).image_to_text.item() == pytest.approx(i2t, abs=1e-12)
    unmasked_BN = negatives(filled_N, queue_image_id_N, image_id_B, mask_same_image=False)
    assert unmasked_BN.all()
    assert instance_loss(**p | {"negative_BN": unmasked_BN}).total > instance_loss(**p).total


def test_instance_loss_sends_gradient_to_online_features_alone(published):
    for name, value in published.items():
        if name != "negative_BN":
            value.requires_grad_(name in ("image_BE", "text_BE"))
    instance_loss(**published).total.backward()
    assert published["image_BE"].grad.abs().sum() > 0
    assert published["text_BE"].grad.abs().sum() > 0


def test_each_direction_sends_gradient_to_its_own_side(published):
    published["image_BE"].requires_grad_()
    published["text_BE"].requires_grad_()
    loss = instance_loss(**published)
    assert torch.autograd.grad(loss.image_to_text, published["text_BE"], allow_unused=True) == (
        None,
    )
    assert torch.autograd.grad(loss.text_to_image, published["image_BE"], allow_unused=True) == (
        None,
    )


def test_instance_loss_of_bf16_features_is_made_in_float32(published):
    halves = {n: v.bfloat16() if v.is_floating_point() else v for n, v in published.items()}
    wide = {n: v.float() if v.is_floating_point() else v for n, v in halves.items()}
    assert instance_loss(**halves).total.dtype == torch.float32
    torch.testing.assert_close(instance_loss(**halves).total, instance_loss(**wide).total)


def test_logits_are_float32_within_autocast(published):
    exact = instance_loss(**published)
    single = {n: v.float() if v.is_floating_point() else v for n, v in published.items()}
    with torch.autocast("cpu", torch.bfloat16):
        loss = instance_loss(**single)
    for logits_BC, exact_BC in ((loss.i2t_BC, exact.i2t_BC), (loss.t2i_BC, exact.t2i_BC)):
        assert logits_BC.dtype == torch.float32
        torch.testing.assert_close(logits_BC.double(), exact_BC, rtol=0, atol=1e-5)


def test_instance_loss_gives_out_the_logits_it_used(published):
    p = published
    loss = instance_loss(**p, temperature=TAU)
    assert loss.i2t_BC.shape == loss.t2i_BC.shape == (4, 11)
    for b in range(4):
        assert loss.i2t_BC[b, 0].item() == pytest.approx(
            float(p["image_BE"][b] @ p["text_key_BE"][b]) / TAU, abs=1e-12
        )
        for n in range(10):
            i2t, t2i = loss.i2t_BC[b, 1 + n].item(), loss.t2i_BC[b, 1 + n].item()
            ours = p["image_BE"][b] @ p["text_queue_NE"][n] / TAU
            assert i2t == pytest.approx(float(ours), abs=1e-12)
            ours = p["text_BE"][b] @ p["image_queue_NE"][n] / TAU
            assert t2i == pytest.approx(float(ours), abs=1e-12)
    assert torch.equal(loss.image_to_text, contrast_loss(loss.i2t_BC))
    assert torch.equal(loss.text_to_image, contrast_loss(loss.t2i_BC))


@pytest.mark.parametrize("kept", [[0], [1, 3], [0, 1, 2, 3]])
def test_instance_loss_is_the_mean_of_the_kept_pairs(published, kept):
    keep_B = torch.zeros(4, dtype=torch.bool)
    keep_B[kept] = True
    per_pair = ("image_BE", "text_BE", "image_key_BE", "text_key_BE", "negative_BN")
    alone = published | {name: published[name][keep_B] for name in per_pair}
    loss, expected = instance_loss(**published, keep_B=keep_B), instance_loss(**alone)
    assert loss.image_to_text.item() == pytest.approx(expected.image_to_text.item(), abs=1e-12)
    assert loss.text_to_image.item() == pytest.approx(expected.text_to_image.item(), abs=1e-12)


def test_a_dropped_pair_reaches_neither_loss_nor_gradient(published):
    keep_B = torch.tensor([True, False, True, False])
    expected = instance_loss(**published, keep_B=keep_B).total
    for name in ("image_BE", "text_BE"):
        published[name][1], published[name][3] = torch.nan, torch.inf
        published[name].requires_grad_()
    loss = instance_loss(**published, keep_B=keep_B).total
    loss.backward()
    assert torch.equal(loss, expected)
    for name in ("image_BE", "text_BE"):
        assert (published[name].grad[~keep_B] == 0).all()
        assert published[name].grad[keep_B].isfinite().all()
        assert (published[name].grad[keep_B] != 0).any()


def test_instance_loss_of_no_kept_pair_is_a_zero_in_the_graph(published):
    for name in ("image_BE", "text_BE"):
        published[name].requires_grad_()
    loss = instance_loss(**published, keep_B=torch.zeros(4, dtype=torch.bool)).total
    assert loss.item() == 0.0
    loss.backward()
    for name in ("image_BE", "text_BE"):
        assert torch.equal(published[name].grad, torch.zeros(4, 8, dtype=torch.float64))


@pytest.mark.parametrize("keep", [None, [True, False, True, True], [False] * 4])
def test_gradient_of_the_instance_loss_is_that_of_differences(published, keep):
    keep_B = None if keep is None else torch.tensor(keep)
    published["negative_BN"][:, 6:] = False

    def total(image_BE, text_BE):
        online = {"image_BE": image_BE, "text_BE": text_BE}
        return instance_loss(**published | online, keep_B=keep_B).total

    inputs = [published[name].clone().requires_grad_() for name in ("image_BE", "text_BE")]
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_contrast_loss_of_extreme_float32_logits_is_finite(size):
    logits_BC = (size * torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, -torch.inf]])).requires_grad_()
    loss = contrast_loss(logits_BC)
    loss.backward()
    assert loss.item() == pytest.approx(size)
    assert logits_BC.grad.isfinite().all()


def test_contrast_loss_survives_hopeless_logits():
    logits_BC = torch.tensor([[-1.0, 1.0]]) / 1e-3
    assert contrast_loss(logits_BC).item() == pytest.approx(2000.0)
