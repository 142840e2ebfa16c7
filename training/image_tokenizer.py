"""Visual tokens: the encoder of DALL-E's discrete VAE, whose codes masked patches must name.

    tokenizer = load_dalle("facebook/flava-image-codebook")
    labels_Bhw = tokenizer.labels(img_BCHW, preprocess.config.mean, preprocess.config.std)

Architecture: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", appendix A, which BEiT and
FLAVA reuse. Shape letters: B batch, C channels, H and W pixels, h and w tokens, V vocabulary.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cots_model.errors import InputError

DALLE_WIDTH, DALLE_VOCAB_SIZE = 256, 8192

_STAGES = (1, 2, 4, 8)  # multiples of the width
_BLOCKS_PER_STAGE = 2
_PIXELS_PER_TOKEN = 16  # of the model's picture: 2 by pooling the pixels, 8 by the encoder
_EPS = 0.1
_CHUNK = 16  # pictures at a time: at 192 pixels, the widest activation of one is 38 MB


class ImageTokenizer(Protocol):
    """What pre-training needs of an image tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of codes V."""
        ...

    def grid(self, image_size: int) -> int:
        """Tokens per side for square pictures of `image_size` pixels.

        Raises:
            InputError: if pictures of this size cannot be tokenized.
        """
        ...

    def labels(self, img_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Codes `[B,h,w]` int64, without gradient, of square pictures.

        Args:
            img_BCHW: the model's input `[B,3,H,H]`, normalised.
            mean: that was subtracted, per channel.
            std: that was divided by, per channel.

        Raises:
            InputError: if pictures of this size cannot be tokenized.
        """
        ...


class DalleBlock(nn.Module):
    """A bottleneck of four convolutions beside a skip, `[B,in,H,W]` to `[B,out,H,W]`."""

    def __init__(self, width_in: int, width_out: int, num_blocks: int) -> None:
        """The bottleneck counts 1 / `num_blocks`^2, with `num_blocks` those of the encoder."""
        super().__init__()
        hidden = width_out // 4
        widths = [width_in, hidden, hidden, hidden]
        convs = [nn.Conv2d(width, hidden, 3, padding=1) for width in widths[:3]]
        self.convs = nn.ModuleList([*convs, nn.Conv2d(hidden, width_out, 1)])
        self.skip = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()
        self.gain = num_blocks**-2

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Apply the block."""
        y_BCHW = x_BCHW
        for conv in self.convs:
            y_BCHW = conv(F.relu(y_BCHW))
        skip_BCHW: Tensor = self.skip(x_BCHW)
        return skip_BCHW + self.gain * y_BCHW


class DalleEncoder(nn.Module):
    """DALL-E's dVAE encoder: an `ImageTokenizer` of 8,192 codes, one per 8 x 8 pixels."""

    def __init__(self, width: int = DALLE_WIDTH, vocab_size: int = DALLE_VOCAB_SIZE) -> None:
        """Random weights; four stages of `width` times 1, 2, 4 and 8."""
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, padding=3)
        num_blocks = len(_STAGES) * _BLOCKS_PER_STAGE
        self.stages = nn.ModuleList()
        width_in = width
        for multiple in _STAGES:
            blocks = []
            for _ in range(_BLOCKS_PER_STAGE):
                blocks.append(DalleBlock(width_in, multiple * width, num_blocks))
                width_in = multiple * width
            self.stages.append(nn.Sequential(*blocks))
        self.head = nn.Conv2d(width_in, vocab_size, 1)

    @property
    def vocab_size(self) -> int:
        """Number of codes V."""
        return self.head.out_channels

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Logits `[B,V,H/8,W/8]` of pixels `[B,3,H,W]` after `map_pixels`."""
        x_BCHW = self.stem(pixels_BCHW)
        for number, stage in enumerate(self.stages):
            x_BCHW = stage(x_BCHW if number == 0 else F.max_pool2d(x_BCHW, 2))
        logits_BVhw: Tensor = self.head(F.relu(x_BCHW))
        return logits_BVhw

    def grid(self, image_size: int) -> int:
        """Tokens per side for pictures of `image_size` pixels: one per 16, so 24 at 384 (paper).

        Raises:
            InputError: if 16 does not divide `image_size`.
        """
        if image_size < _PIXELS_PER_TOKEN or image_size % _PIXELS_PER_TOKEN:
            raise InputError(
                f"DALL-E's tokenizer makes one token of {_PIXELS_PER_TOKEN} x {_PIXELS_PER_TOKEN} "
                f"pixels, which do not divide pictures of {image_size} x {image_size}; use a "
                "multiple of 16 and patches of 16, or train a tokenizer (cots train tokenizer)"
            )
        return image_size // _PIXELS_PER_TOKEN

    @torch.no_grad()
    def labels(self, img_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Codes `[B,H/16,H/16]` int64 of normalised pictures; see `ImageTokenizer.labels`.

        The paper (section 3.2.1): values back to [0, 1], 2 x 2 average pooling, the most likely
        code. Always in float32.

        Raises:
            InputError: if the pictures are not square, or 16 does not divide their side.
        """
        self.grid(square_side(img_BCHW))
        with torch.autocast(img_BCHW.device.type, enabled=False):
            pixels_BCHW = map_pixels(F.avg_pool2d(unnormalise(img_BCHW, mean, std), 2))
            return torch.cat([self(part).argmax(dim=1) for part in pixels_BCHW.split(_CHUNK)])


def map_pixels(pixels_BCHW: Tensor) -> Tensor:
    """From [0, 1] to [0.1, 0.9], as DALL-E's tokenizer was trained (its appendix A.3)."""
    return (1 - 2 * _EPS) * pixels_BCHW + _EPS


def unnormalise(img_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation of `Preprocess.image`: `[B,3,H,W]` float32 in [0, 1]."""
    img_BCHW = img_BCHW.float()
    mean_C11, std_C11 = (img_BCHW.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return img_BCHW * std_C11 + mean_C11


def square_side(img_BCHW: Tensor) -> int:
    """Side of square pictures, in pixels.

    Raises:
        InputError: for any other shape than `[B,3,H,H]` with B > 0.
    """
    if img_BCHW.ndim != 4 or not len(img_BCHW) or img_BCHW.shape[1] != 3:
        raise InputError(f"pictures [B,3,H,H] are needed, not {list(img_BCHW.shape)}")
    height, width = img_BCHW.shape[2:]
    if height != width:
        raise InputError(f"square pictures are needed, not {width} x {height}; see Preprocess")
    return int(height)


def load_dalle(path: Path) -> DalleEncoder:
    """Read DALL-E's encoder from a file, under the names of Hugging Face's FLAVA or OpenAI's.

    Args:
        path: `.safetensors`, or a torch file that holds tensors by name and nothing else.

    Returns:
        The encoder in eval mode, without gradient.

    Raises:
        InputError: if the file cannot be read, holds code, or is for another network.
    """
    weights = rename_dalle(_read_tensors(path))
    ends = [weights.get(f"{end}.weight", torch.empty(0)) for end in ("stem", "head")]
    if any(end.ndim != 4 for end in ends):
        raise InputError(
            f"{path} has no 'blocks.input' and 'blocks.output'; is it DALL-E's encoder?"
        )
    encoder = DalleEncoder(*(end.shape[0] for end in ends))
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as err:
        raise InputError(f"the weights in {path} are not those of DALL-E's encoder: {err}") from err
    return encoder.eval().requires_grad_(False)


def rename_dalle(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the names of FLAVA (`image_codebook` of a whole model too) or OpenAI to ours.

    Foreign names stay as they are, so that loading reports them.
    """
    prefix = "image_codebook."
    if any(name.startswith(prefix) for name in weights):
        weights = {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}
    return {_our_name(name): weight.float() for name, weight in weights.items()}


_BLOCK = re.compile(
    r"blocks\.group_(\d)\.(?:group\.)?block_(\d)"
    r"\.(?:(id_path)|res_path\.(?:path\.)?conv_(\d))\.(w|b|weight|bias)"
)
_END = re.compile(r"blocks\.(input|output\.conv)\.(w|b|weight|bias)")
_LEAF = {"w": "weight", "b": "bias", "weight": "weight", "bias": "bias"}


def _our_name(name: str) -> str:
    if match := _BLOCK.fullmatch(name):
        stage, block, skip, conv, leaf = match.groups()
        part = "skip" if skip else f"convs.{int(conv) - 1}"
        return f"stages.{int(stage) - 1}.{int(block) - 1}.{part}.{_LEAF[leaf]}"
    if match := _END.fullmatch(name):
        return f"{'stem' if match[1] == 'input' else 'head'}.{_LEAF[match[2]]}"
    return name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise InputError(
            f"{path} holds more than tensors, and running code from a file is refused; where you "
            "trust it, store its state_dict() alone with torch.save or safetensors"
        ) from err
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as err:
        reason = str(err).strip().split("\n", 1)[0]
        raise InputError(f"{path} cannot be read ({reason}); copy it again") from err
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise InputError(f"{path} holds {type(weights).__name__}, not tensors by name")
    return weights
