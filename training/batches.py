"""Batches of pairs: which picture, which caption, which view, from a seed alone.

Shape letters: B batch, L tokens, C channels, H and W pixels, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cots_model.errors import InputError
from cots_model.preprocess import Preprocess
from training.config import AugmentConfig
from training.data import Example
from training.feature_cache import FeatureCache, random_view


@dataclass(frozen=True)
class Batch:
    """Pairs ready for the towers.

    Attributes:
        image: pixels `[B,C,H,W]`, or features `[B,D]` of a frozen image tower.
        tok_BL: int64 token ids.
        mask_BL: bool, true on tokens.
        image_id_B: int64, the picture's number.
    """

    image: Tensor
    tok_BL: Tensor
    mask_BL: Tensor
    image_id_B: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(*(t.to(device) for t in vars(self).values()))


class PairBatches:
    """One epoch is every picture once, with one of its captions; short last batches are dropped."""

    def __init__(
        self,
        examples: Sequence[Example],
        preprocess: Preprocess,
        augment: AugmentConfig,
        *,
        batch_size: int,
        seed: int,
        feature_cache: FeatureCache | None = None,
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
        self._preprocess = preprocess
        self._augment = augment
        self._batch_size = batch_size
        self._seed = seed
        self._feature_cache = feature_cache

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self._examples) // self._batch_size

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`; equal numbers give equal batches."""
        rng = np.random.default_rng([self._seed, number])
        order = rng.permutation(len(self._examples))
        for step in range(len(self)):
            rows = order[step * self._batch_size : (step + 1) * self._batch_size]
            yield self._batch(rows.tolist(), rng)

    def _batch(self, rows: list[int], rng: np.random.Generator) -> Batch:
        texts = [str(rng.choice(self._examples[row].captions)) for row in rows]
        tok_BL, mask_BL = self._preprocess.text(texts)
        return Batch(self._images(rows, rng), tok_BL, mask_BL, torch.tensor(rows))

    def _images(self, rows: list[int], rng: np.random.Generator) -> Tensor:
        if self._feature_cache is not None:
            views = rng.integers(self._feature_cache.num_views, size=len(rows)).tolist()
            return self._feature_cache.get(rows, views)
        return torch.stack(
            [
                random_view(self._examples[row].picture(), self._preprocess, self._augment, rng)
                for row in rows
            ]
        )
