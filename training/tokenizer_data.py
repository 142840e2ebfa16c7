"""Pictures for training an image tokenizer, and the picture that shows what it keeps of them.

Shape letters: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cots_model.errors import InputError
from cots_model.preprocess import squared
from training.broken import BrokenCount
from training.example import BrokenExampleError, Example
from training.feature_cache import random_crop
from training.loader import batched, prepare_all
from training.orders import MemoryOrder
from training.tokenizer_config import PictureConfig

T = TypeVar("T")

_GAP = 2  # white pixels between pictures


@dataclass(frozen=True)
class _Loaded:
    """Pictures `[B,3,H,H]` that could be read, if any, and the errors of the others."""

    pixels_BCHW: Tensor | None
    errors: tuple[BrokenExampleError, ...]


@dataclass(frozen=True)
class _Load:
    """From pictures with a seed each, or none for whole ones, to their pixels."""

    config: PictureConfig

    def __call__(self, step: Sequence[tuple[Example, tuple[int, ...] | None]]) -> _Loaded:
        pixels, errors = [], []
        for example, seed in step:
            try:
                pixels.append(self._pixels(example, seed))
            except BrokenExampleError as err:
                errors.append(err)
        return _Loaded(torch.stack(pixels) if pixels else None, tuple(errors))

    def _pixels(self, example: Example, seed: tuple[int, ...] | None) -> Tensor:
        if seed is None:
            return to_pixels(example.picture(), self.config)
        rng = np.random.default_rng(seed)
        crop = random_crop(example.picture(), self.config.min_area, rng)
        pixels_CHW = to_pixels(crop, self.config)
        return pixels_CHW.flip(-1) if self.config.flip and rng.random() < 0.5 else pixels_CHW


class PictureBatches:
    """One epoch is every picture once, in a random crop; short last batches are dropped."""

    def __init__(
        self,
        examples: Sequence[Example],
        config: PictureConfig,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        max_broken_share: float = 0.05,
    ) -> None:
        """Take pictures, and of videos the frame in the middle.

        A step has `batch_size` of them, less what is broken, but at most `max_broken_share` of an
        epoch. The batches do not depend on `num_workers`, which decode.

        Raises:
            InputError: if there are fewer pictures than one batch.
        """
        if len(examples) < batch_size:
            raise InputError(
                f"{len(examples)} pictures do not fill one batch of {batch_size}; "
                "lower batch_size or add data"
            )
        self._examples = examples
        self._load = _Load(config)
        self._batch_size = batch_size
        self._seed = seed
        self._num_workers = num_workers
        self._max_broken_share = max_broken_share

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self._examples) // self._batch_size

    def fingerprint(self) -> str:
        """Changes when the pictures or their places change; what is said of them is not used."""
        bare = [replace(e, captions=(), repeat=1, weight=1.0) for e in self._examples]
        return MemoryOrder(bare).fingerprint()

    def epoch(self, number: int, start: int = 0) -> Iterator[Tensor | None]:
        """Pictures `[B,3,H,H]` float32 in [0, 1]; equal numbers give equal batches.

        Args:
            number: of the epoch, from 0.
            start: the step to begin at.

        Yields:
            One item a step; `None` where no picture of the step can be read.

        Raises:
            InputError: if more than the allowed share of the pictures is broken.
            CotsError: if a decoding process ends.
        """
        rng = np.random.default_rng([self._seed, number])
        order = rng.permutation(len(self._examples))[: len(self) * self._batch_size].tolist()
        order = order[start * self._batch_size :]
        drawn = [(self._examples[row], (self._seed, number, row)) for row in order]
        steps = batched(drawn, self._batch_size)
        in_all = len(self) * self._batch_size
        broken = BrokenCount(max_share=self._max_broken_share, num_expected=in_all)
        for loaded in prepare_all(self._load, steps, num_workers=self._num_workers):
            broken.add(self._batch_size, loaded.errors)
            yield loaded.pixels_BCHW
        broken.finish(f"epoch {number}")


def to_pixels(img: Image.Image, config: PictureConfig) -> Tensor:
    """A whole picture as the model sees it, before it is normalised: `[3,H,H]` in [0, 1]."""
    resized = squared(img, config.image_size, config.resize)
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def whole_pictures(
    examples: Sequence[Example],
    config: PictureConfig,
    *,
    batch_size: int,
    max_broken_share: float = 0.05,
) -> Iterator[Tensor]:
    """All pictures that can be read, uncut and in order, `[B,3,H,H]` float32 in [0, 1].

    Raises:
        InputError: if more than the allowed share is broken.
    """
    load = _Load(config)
    broken = BrokenCount(max_share=max_broken_share, num_expected=len(examples))
    for step in batched([(example, None) for example in examples], batch_size):
        loaded = load(step)
        broken.add(len(step), loaded.errors)
        if loaded.pixels_BCHW is not None:
            yield loaded.pixels_BCHW
    broken.finish("whole pictures")


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
