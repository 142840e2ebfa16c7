"""Pictures for training an image tokenizer, and the picture that shows what it keeps of them.

Shape letters: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cots_model.errors import InputError
from cots_model.preprocess import squared
from training.data import Example
from training.feature_cache import random_crop
from training.tokenizer_config import PictureConfig

_GAP = 2  # white pixels between pictures


class PictureBatches:
    """One epoch is every picture once, in a random crop; short last batches are dropped."""

    def __init__(
        self, examples: Sequence[Example], config: PictureConfig, *, batch_size: int, seed: int
    ) -> None:
        """Take pictures in memory order.

        Raises:
            InputError: if there are fewer pictures than one batch.
        """
        if len(examples) < batch_size:
            raise InputError(
                f"{len(examples)} pictures do not fill one batch of {batch_size}; "
                "lower batch_size or add data"
            )
        self._examples = examples
        self._config = config
        self._batch_size = batch_size
        self._seed = seed

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self._examples) // self._batch_size

    def epoch(self, number: int) -> Iterator[Tensor]:
        """Pictures `[B,3,H,H]` float32 in [0, 1]; equal numbers give equal batches.

        Raises:
            InputError: naming a picture that cannot be read.
        """
        rng = np.random.default_rng([self._seed, number])
        order = rng.permutation(len(self._examples)).tolist()
        for step in range(len(self)):
            rows = order[step * self._batch_size : (step + 1) * self._batch_size]
            yield torch.stack([self._view(row, number) for row in rows])

    def _view(self, row: int, epoch: int) -> Tensor:
        rng = np.random.default_rng([self._seed, epoch, row])
        crop = random_crop(self._examples[row].picture(), self._config.min_area, rng)
        pixels_CHW = to_pixels(crop, self._config)
        return pixels_CHW.flip(-1) if self._config.flip and rng.random() < 0.5 else pixels_CHW


def to_pixels(img: Image.Image, config: PictureConfig) -> Tensor:
    """A whole picture as the model sees it, before it is normalised: `[3,H,H]` in [0, 1]."""
    resized = squared(img, config.image_size, config.resize)
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def whole_pictures(
    examples: Sequence[Example], config: PictureConfig, *, batch_size: int
) -> Iterator[Tensor]:
    """All pictures, uncut and in order, `[B,3,H,H]`; the last batch may be short."""
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        yield torch.stack([to_pixels(example.picture(), config) for example in part])


def write_comparison(path: Path, original_BCHW: Tensor, painted_BCHW: Tensor) -> None:
    """Write a PNG of two rows: pictures in [0, 1], and below each what became of it."""
    _, _, height, width = original_BCHW.shape
    columns = len(original_BCHW)
    size = (columns * (width + _GAP) - _GAP, 2 * height + _GAP)
    sheet = Image.new("RGB", size, "white")
    for row, img_BCHW in enumerate((original_BCHW, painted_BCHW)):
        byte_BHWC = (img_BCHW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for column, byte_HWC in enumerate(byte_BHWC):
            place = (column * (width + _GAP), row * (height + _GAP))
            sheet.paste(Image.fromarray(byte_HWC), place)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        sheet.save(partial, "PNG")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
