"""Our own image tokenizer: formulas against naive ones, shapes, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cots_model.config import parse
from cots_model.errors import ConfigError, InputError
from training.dvae import (
    Dvae,
    DvaeConfig,
    batch_kl_to_uniform,
    code_statistics,
    gumbel_noise,
    gumbel_softmax,
    kl_to_uniform,
    spread_codes,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture
def dvae() -> Dvae:
    torch.manual_seed(0)
    return Dvae(DvaeConfig(vocab_size=12, grid=4, widths=(8, 16), num_blocks=1, code_dim=6)).eval()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_gumbel_softmax_is_the_formula():
    logits_BKhw, noise_BKhw, temperature = randn(2, 5, 3, 1), randn(2, 5, 3, 1, seed=1), 0.4
    relaxed_BKhw = gumbel_softmax(logits_BKhw, noise_BKhw, temperature)
    for b in range(2):
        for h in range(3):
            weights = [
                math.exp((logits_BKhw[b, k, h, 0] + noise_BKhw[b, k, h, 0]).item() / temperature)
                for k in range(5)
            ]
            for k in range(5):
                expected = weights[k] / sum(weights)
                assert relaxed_BKhw[b, k, h, 0].item() == pytest.approx(expected, rel=1e-5)


def test_gumbel_softmax_sharpens_as_the_temperature_falls():
    logits_BKhw, noise_BKhw = randn(4, 9, 2, 2), randn(4, 9, 2, 2, seed=1)
    largest = [
        gumbel_softmax(logits_BKhw, noise_BKhw, t).amax(dim=1).mean().item() for t in (10, 1, 1e-3)
    ]
    assert largest[0] < 0.2 < largest[1] < 0.9 < largest[2]
    hard_BKhw = gumbel_softmax(logits_BKhw, noise_BKhw, 1e-4)
    assert torch.equal(hard_BKhw.argmax(1), (logits_BKhw + noise_BKhw).argmax(1))


def test_gumbel_softmax_is_float32_under_half_precision():
    logits_BKhw = randn(1, 4, 2, 2).bfloat16()
    assert gumbel_softmax(logits_BKhw, gumbel_noise(logits_BKhw), 0.1).dtype == torch.float32


def test_gumbel_noise_samples_the_distribution():
    torch.manual_seed(0)
    logits_BKhw = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().view(1, 4, 1, 1)
    logits_BKhw = logits_BKhw.expand(1, 4, 200, 200)
    noise_BKhw = gumbel_noise(logits_BKhw)
    assert noise_BKhw.mean().item() == pytest.approx(0.57722, abs=0.02)
    assert noise_BKhw.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    drawn = (logits_BKhw + noise_BKhw).argmax(dim=1).flatten()
    share_K = torch.bincount(drawn, minlength=4) / 40_000
    torch.testing.assert_close(share_K, torch.tensor([0.5, 0.3, 0.15, 0.05]), rtol=0, atol=0.01)


def test_kl_is_the_formula():
    logits_BKhw = 3 * randn(2, 5, 2, 3)
    total = 0.0
    for b in range(2):
        for h in range(2):
            for w in range(3):
                exps = [math.exp(value) for value in logits_BKhw[b, :, h, w].tolist()]
                q = [value / sum(exps) for value in exps]
                total += sum(p * math.log(p / (1 / 5)) for p in q)
    assert kl_to_uniform(logits_BKhw).item() == pytest.approx(total / 12, rel=1e-5)


def test_kl_is_0_at_uniform_and_log_k_at_certainty():
    assert kl_to_uniform(torch.full((1, 7, 2, 2), 3.0)).item() == pytest.approx(0, abs=1e-6)
    certain_BKhw = torch.zeros(1, 7, 2, 2)
    certain_BKhw[:, 3] = 200.0
    assert kl_to_uniform(certain_BKhw).item() == pytest.approx(math.log(7), rel=1e-6)


def test_batch_kl_is_the_formula():
    logits_BKhw = 3 * randn(2, 5, 2, 3)
    q_BKhw = logits_BKhw.softmax(1)
    mean = [q_BKhw[:, k].mean().item() for k in range(5)]
    expected = sum(p * math.log(p / (1 / 5)) for p in mean)
    assert batch_kl_to_uniform(logits_BKhw).item() == pytest.approx(expected, rel=1e-5)
    assert expected < kl_to_uniform(logits_BKhw).item()


def test_batch_kl_is_0_for_certain_tokens_of_different_codes():
    logits_BKhw = 300 * torch.eye(4).view(1, 4, 2, 2)
    assert batch_kl_to_uniform(logits_BKhw).item() == pytest.approx(0, abs=1e-6)
    assert kl_to_uniform(logits_BKhw).item() == pytest.approx(math.log(4), rel=1e-6)
    one_BKhw = 300 * torch.eye(4)[:, :1].view(1, 4, 1, 1).expand(1, 4, 2, 2)
    assert batch_kl_to_uniform(one_BKhw).item() == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize("kl", [kl_to_uniform, batch_kl_to_uniform])
def test_kl_of_impossible_codes_has_a_finite_gradient(kl):
    logits_BKhw = torch.tensor([0.0, -1e4, 1e4]).view(1, 3, 1, 1).expand(1, 3, 2, 2).clone()
    logits_BKhw.requires_grad_()
    kl(logits_BKhw).backward()
    assert logits_BKhw.grad.isfinite().all()


@pytest.mark.parametrize(
    ("counts", "usage", "perplexity"),
    [
        ([5, 5, 5, 5], 1.0, 4.0),
        ([9, 0, 0, 0], 0.25, 1.0),
        ([3, 3, 0, 0], 0.5, 2.0),
        ([2, 1, 1, 0], 0.75, 2**1.5),
        ([0, 0, 0, 0], 0.0, 1.0),
    ],
)
def test_code_statistics(counts, usage, perplexity):
    assert code_statistics(torch.tensor(counts)) == pytest.approx((usage, perplexity))


def test_shapes(dvae):
    assert dvae.config.input_side == 16
    assert dvae.vocab_size == 12
    logits_BKhw = dvae.encode(torch.rand(3, 3, 16, 16))
    assert logits_BKhw.shape == (3, 12, 4, 4)
    assert dvae.decode(logits_BKhw.softmax(1)).shape == (3, 3, 16, 16)
    assert DvaeConfig(grid=16).input_side == 128  # 8 pixels a token, as DALL-E's
    with torch.device("meta"):
        assert Dvae(DvaeConfig(grid=14)).encode(torch.empty(1, 3, 112, 112)).shape[2:] == (14, 14)


def test_painting_is_decoding_of_the_most_likely_codes(dvae):
    pixels_BCHW = torch.rand(2, 3, 16, 16)
    code_Bhw = dvae.encode(pixels_BCHW).argmax(1)
    certain_BKhw = F.one_hot(code_Bhw, 12).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(dvae.paint(pixels_BCHW), dvae.decode(certain_BKhw))


def test_labels_are_the_naive_pipelines(dvae):
    pixels_BCHW = torch.rand(70, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    half_BCHW = torch.zeros(70, 3, 16, 16)
    for row in range(16):
        for column in range(16):
            square = pixels_BCHW[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            half_BCHW[:, :, row, column] = square.mean(dim=(2, 3))
    spread_codes(dvae, half_BCHW)
    expected_Bhw = dvae.encode(half_BCHW).argmax(1)
    img_BCHW = ((pixels_BCHW - mean) / std).requires_grad_()
    labels_Bhw = dvae.labels(img_BCHW, MEAN, STD)
    assert labels_Bhw.dtype == torch.int64
    assert len(labels_Bhw.unique()) > 3
    assert torch.equal(labels_Bhw, expected_Bhw)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dvae.labels(img_BCHW, MEAN, STD), labels_Bhw)


@pytest.mark.parametrize(("side", "patch"), [(224, 14), (224, 16), (384, 16), (32, 4)])
def test_the_token_grid_is_the_towers_patch_grid(side, patch):
    grid = side // patch
    dvae = Dvae(DvaeConfig(vocab_size=4, grid=grid, widths=(4, 4), num_blocks=0, code_dim=2))
    assert dvae.grid(side) == grid
    assert dvae.labels(torch.zeros(1, 3, side, side), MEAN, STD).shape == (1, grid, grid)


def test_pictures_that_do_not_fit_are_refused(dvae):
    with pytest.raises(InputError, match="at least 16 pixels a side, not 15"):
        dvae.grid(15)
    with pytest.raises(InputError, match="at least 16 pixels a side, not 8"):
        dvae.labels(torch.zeros(1, 3, 8, 8), MEAN, STD)
    with pytest.raises(InputError, match="square pictures are needed"):
        dvae.labels(torch.zeros(1, 3, 32, 16), MEAN, STD)


def test_spreading_makes_first_codes_differ(dvae):
    pixels_BCHW = torch.rand(8, 3, 16, 16)
    spread_codes(dvae, pixels_BCHW)
    deviation_K, mean_K = torch.std_mean(dvae.encode(pixels_BCHW), dim=(0, 2, 3))
    torch.testing.assert_close(deviation_K, torch.ones(12), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean_K, torch.zeros(12), rtol=0, atol=1e-4)


def test_every_parameter_learns(dvae):
    pixels_BCHW = torch.rand(2, 3, 16, 16)
    logits_BKhw = dvae.encode(pixels_BCHW)
    code_BKhw = gumbel_softmax(logits_BKhw, gumbel_noise(logits_BKhw), 1.0)
    (F.mse_loss(dvae.decode(code_BKhw), pixels_BCHW) + kl_to_uniform(logits_BKhw)).backward()
    still = [n for n, p in dvae.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 1}, {"grid": 0}, {"widths": []}, {"widths": [8, 0]}, {"stages": 3}],
)
def test_bad_sizes_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        parse(DvaeConfig, {"grid": 4} | change, origin="x")
