"""A small discrete VAE of our own: an image tokenizer where DALL-E's weights cannot be had.

    tokenizer = load_tokenizer_model("runs/tokenizer")
    labels_Bhw = tokenizer.labels(img_BCHW, preprocess.config.mean, preprocess.config.std)

An encoder gives every token of a grid a distribution over K codes, a decoder paints the picture
from one code vector a token (Ramesh et al. 2021, section 2.1); this architecture is chosen. Shape
letters: B batch, C channels, H and W pixels, h and w tokens, K codes, D code width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from cots_model.config import Frozen
from cots_model.errors import InputError
from training.image_tokenizer import square_side, unnormalise

_CHUNK = 64  # pictures at a time


class DvaeConfig(Frozen):
    """Size of a tokenizer; all of it is chosen.

    Attributes:
        vocab_size: number of codes K (DALL-E: 8,192).
        grid: tokens per side; must be the patches per side of the image tower that learns them.
        widths: channels after each halving. Three halvings make a token of 8 x 8 pixels, as
            DALL-E's.
        num_blocks: residual blocks at the coarsest size, in encoder and decoder each.
        code_dim: width D of a code vector.
    """

    vocab_size: int = Field(default=1024, ge=2)
    grid: PositiveInt
    widths: tuple[PositiveInt, ...] = Field(default=(32, 64, 128), min_length=1)
    num_blocks: int = Field(default=2, ge=0)
    code_dim: PositiveInt = 64

    @property
    def input_side(self) -> int:
        """Side of the pictures that the encoder sees, in pixels."""
        return self.grid << len(self.widths)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.conv2(F.relu(self.conv1(F.relu(x_BCHW))))
        return x_BCHW + y_BCHW


class Dvae(nn.Module):
    """Encoder, code vectors and decoder; an `ImageTokenizer` (see `training.image_tokenizer`)."""

    def __init__(self, config: DvaeConfig) -> None:
        """Random weights."""
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.code_KD = nn.Parameter(torch.randn(config.vocab_size, config.code_dim))
        self.decoder = _decoder(config)

    @property
    def vocab_size(self) -> int:
        """Number of codes K."""
        return self.config.vocab_size

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Logits `[B,K,h,w]` of pictures `[B,3,H,W]` in [0, 1] at the encoder's size."""
        logits_BKhw: Tensor = self.encoder(2 * pixels_BCHW - 1)
        return logits_BKhw

    def decode(self, weight_BKhw: Tensor) -> Tensor:
        """Paint `[B,3,H,W]` from the weight of every code; about [0, 1], not clipped."""
        code_BDhw = torch.einsum("bkhw,kd->bdhw", weight_BKhw, self.code_KD)
        painted_BCHW: Tensor = self.decoder(code_BDhw)
        return (painted_BCHW + 1) / 2

    def paint(self, pixels_BCHW: Tensor) -> Tensor:
        """What the most likely codes keep of pictures at the encoder's size, `[B,3,H,W]`."""
        code_Bhw = self.encode(pixels_BCHW).argmax(dim=1)
        painted_BCHW: Tensor = self.decoder(self.code_KD[code_Bhw].permute(0, 3, 1, 2))
        return (painted_BCHW + 1) / 2

    def grid(self, image_size: int) -> int:
        """Tokens per side, for pictures of at least `config.input_side` pixels.

        Raises:
            InputError: if the pictures are smaller.
        """
        if image_size < self.config.input_side:
            raise InputError(
                f"this tokenizer makes {self.config.grid} x {self.config.grid} tokens of pictures "
                f"of at least {self.config.input_side} pixels a side, not {image_size}; train one "
                "with fewer tokens (grid) or fewer halvings (widths)"
            )
        return self.config.grid

    def fit(self, pixels_BCHW: Tensor) -> Tensor:
        """Shrink square pictures to the encoder's size `[B,3,H,W]` by averaging areas.

        Raises:
            InputError: if they are not square, or too small.
        """
        self.grid(square_side(pixels_BCHW))
        return F.interpolate(pixels_BCHW, self.config.input_side, mode="area")

    @torch.no_grad()
    def labels(self, img_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Most likely codes `[B,h,w]` int64; see `ImageTokenizer.labels`. Always in float32.

        Raises:
            InputError: if the pictures are not square, or smaller than the encoder's.
        """
        with torch.autocast(img_BCHW.device.type, enabled=False):
            pixels_BCHW = self.fit(unnormalise(img_BCHW, mean, std))
            parts = pixels_BCHW.split(_CHUNK)
            return torch.cat([self.encode(part).argmax(dim=1) for part in parts])


def _encoder(config: DvaeConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width in zip((3, *config.widths), config.widths, strict=False):
        layers += [nn.Conv2d(width_in, width, 4, stride=2, padding=1), nn.ReLU()]
    layers += [_Residual(config.widths[-1]) for _ in range(config.num_blocks)]
    layers += [nn.ReLU(), nn.Conv2d(config.widths[-1], config.vocab_size, 1)]
    return nn.Sequential(*layers)


def _decoder(config: DvaeConfig) -> nn.Sequential:
    widths = (*reversed(config.widths), 3)
    layers: list[nn.Module] = [nn.Conv2d(config.code_dim, widths[0], 1)]
    layers += [_Residual(widths[0]) for _ in range(config.num_blocks)]
    for width_in, width in pairwise(widths):
        layers += [nn.ReLU(), nn.ConvTranspose2d(width_in, width, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)


@torch.no_grad()
def spread_codes(dvae: Dvae, pixels_BCHW: Tensor) -> None:
    """Scale the last layer so that every code's logit has mean 0 and deviation 1 on pictures.

    A fresh encoder says nearly the same of every token, and the first steps then give all of them
    to a few codes (chosen).

    Args:
        dvae: with its first weights.
        pixels_BCHW: pictures in [0, 1] at the encoder's size.
    """
    head = dvae.encoder[-1]
    assert isinstance(head, nn.Conv2d)
    assert head.bias is not None
    deviation_K, mean_K = torch.std_mean(dvae.encode(pixels_BCHW), dim=(0, 2, 3))
    gain_K = 1 / deviation_K.clamp_min(1e-6)
    head.weight *= gain_K[:, None, None, None]
    head.bias.copy_((head.bias - mean_K) * gain_K)


def gumbel_noise(like: Tensor) -> Tensor:
    """Independent draws of the standard Gumbel distribution, of `like`'s shape, in float32."""
    draw = torch.empty_like(like, dtype=torch.float32).exponential_()
    return -draw.clamp_min(torch.finfo(torch.float32).tiny).log()


def gumbel_softmax(logits_BKhw: Tensor, noise_BKhw: Tensor, temperature: float) -> Tensor:
    """softmax((logits + noise) / temperature) over K, `[B,K,h,w]` float32.

    A relaxed sample of the distribution that the logits are of (Jang et al. 2017); it becomes a
    sample as the temperature goes to 0.
    """
    return ((logits_BKhw.float() + noise_BKhw) / temperature).softmax(dim=1)


def kl_to_uniform(logits_BKhw: Tensor) -> Tensor:
    """Mean over all tokens of KL(softmax(logits) || uniform), in nats; a scalar in [0, log K]."""
    log_q_BKhw = logits_BKhw.float().log_softmax(dim=1)
    entropy_Bhw = -(log_q_BKhw.exp() * log_q_BKhw).sum(dim=1)
    return math.log(logits_BKhw.shape[1]) - entropy_Bhw.mean()


def batch_kl_to_uniform(logits_BKhw: Tensor) -> Tensor:
    """KL(mean over all tokens of softmax(logits) || uniform), in nats; in [0, `kl_to_uniform`].

    0 as soon as all codes are equally frequent, however certain the single tokens are.
    """
    log_q_BKhw = logits_BKhw.float().log_softmax(dim=1)
    num_tokens = log_q_BKhw.numel() // log_q_BKhw.shape[1]
    log_q_K = log_q_BKhw.logsumexp(dim=(0, 2, 3)) - math.log(num_tokens)
    return math.log(len(log_q_K)) + (log_q_K.exp() * log_q_K).sum()


def code_statistics(count_K: Tensor) -> tuple[float, float]:
    """How a codebook is used, from how often each code occurred.

    Returns:
        usage, the share of codes that occurred at all; and perplexity, the exponential of the
        entropy of the frequencies: K if all are equally frequent, 1 if one code is all there is.
    """
    p_K = count_K.double() / count_K.sum().clamp_min(1)
    entropy = -torch.special.xlogy(p_K, p_K).sum()
    return (count_K > 0).double().mean().item(), entropy.exp().item()
