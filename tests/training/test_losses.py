"""The instance-level loss against the published numbers and against a naive loop."""

import math

import pytest
import torch

from training.losses import contrast_loss, instance_loss, negatives

TAU = 0.05


def feat(n: int, d: int, a: float, b: float, c: float) -> torch.Tensor:
    i = torch.arange(n, dtype=torch.float64)[:, None]
    j = torch.arange(d, dtype=torch.float64)[None, :]
    return norm(torch.sin(a + b * i + c * j * (i + 1)))


def norm(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True)


@pytest.fixture
def published() -> dict[str, torch.Tensor]:
    """B = 4, N = 10, d = 8, in float64."""
    image_BE, text_BE = feat(4, 8, 0.1, 0.7, 0.9), feat(4, 8, 0.3, 0.5, 1.1)
    return {
        "image_BE": image_BE,
        "text_BE": text_BE,
        "image_key_BE": norm(image_BE + 0.3 * feat(4, 8, 0.2, 0.4, 1.3)),
        "text_key_BE": norm(text_BE + 0.3 * image_BE + 0.3 * feat(4, 8, 0.6, 0.8, 0.7)),
        "image_queue_NE": feat(10, 8, 0.9, 0.35, 0.55),
        "text_queue_NE": feat(10, 8, 0.4, 0.65, 0.45),
        "negative_BN": torch.ones(4, 10, dtype=torch.bool),
    }


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


def test_contrast_loss_survives_hopeless_logits():
    logits_BC = torch.tensor([[-1.0, 1.0]]) / 1e-3
    assert contrast_loss(logits_BC).item() == pytest.approx(2000.0)
