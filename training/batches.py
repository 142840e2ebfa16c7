"""Batches of pairs: which picture, which caption, which view, from a seed alone.

Pictures that cannot be read are replaced by other pairs of their batch, counted and logged.

Shape letters: B batch, F pictures or frames, L tokens, C channels, H and W pixels, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cots_model.errors import InputError
from cots_model.preprocess import Preprocess
from training.broken import BrokenCount
from training.caption_features import CaptionFeatures
from training.config import AugmentConfig
from training.example import BrokenExampleError, Example
from training.feature_cache import FeatureCache, random_view
from training.loader import prepare_all
from training.orders import MemoryOrder, Order
from training.resident import KeptPictures, ResidentPictures, View
from training.sampler import Draw, PairStream, State, Step


@dataclass(frozen=True)
class Batch:
    """Pairs ready for the towers.

    Attributes:
        image: pixels `[F,C,H,W]` behind `to`, before it as they are loaded: uint8, or views
            `[B,6]` of resident pictures; or features `[B,D]` of a frozen image tower. F is B but
            for videos, whose frames lie beside each other.
        tok_BL: int64 token ids.
        mask_BL: bool, true on tokens.
        image_id_B: int64, the picture's number.
        text_BD: features of a frozen text tower; `None` if it is trained.
        num_frames_B: frames of each pair, for `cots_model.videos.pool_frames`; `None` if all are
            pictures.
        draws: the pairs as they were drawn, where they are known.
        to_pixels: what `to` makes normalised pixels with; `None` if nothing is left to do.
    """

    image: Tensor
    tok_BL: Tensor
    mask_BL: Tensor
    image_id_B: Tensor
    text_BD: Tensor | None = None
    num_frames_B: tuple[int, ...] | None = None
    draws: tuple[Draw, ...] = ()
    to_pixels: Callable[[Tensor], Tensor] | None = None

    def to(self, device: torch.device) -> Batch:
        """Ready for the towers on a device: bytes travel, and are normalised there."""
        image = self.image.to(device)
        return Batch(
            image if self.to_pixels is None else self.to_pixels(image),
            self.tok_BL.to(device),
            self.mask_BL.to(device),
            self.image_id_B.to(device),
            None if self.text_BD is None else self.text_BD.to(device),
            self.num_frames_B,
            self.draws,
        )


@dataclass(frozen=True)
class Prepared:
    """A step as it comes from a loading process.

    Attributes:
        batch: the pairs, or `None` if not one of them could be read.
        num_draws: how many pairs were wanted.
        errors: of those that could not be read.
        state: the place behind the step.
    """

    batch: Batch | None
    num_draws: int
    errors: tuple[BrokenExampleError, ...]
    state: State


class BatchMaker:
    """From the draws of a step to a batch; the same in any process."""

    def __init__(
        self,
        preprocess: Preprocess,
        augment: AugmentConfig,
        *,
        num_frames: int,
        feature_cache: FeatureCache | None = None,
        captions: CaptionFeatures | None = None,
        kept: KeptPictures | None = None,
    ) -> None:
        """Take what all batches share."""
        self._preprocess = preprocess
        self._augment = augment
        self._num_frames = num_frames
        self._feature_cache = feature_cache
        self._captions = captions
        self._kept = kept

    def __call__(self, step: Step) -> Prepared:
        """Read the pictures; the place of a broken one is taken by the next good pair."""
        good: list[tuple[Draw, Tensor]] = []
        errors: list[BrokenExampleError] = []
        for draw in step.draws:
            try:
                good.append((draw, self._image(draw)))
            except BrokenExampleError as err:
                errors.append(err)
        chosen = [good[i % len(good)] for i in range(len(step.draws))] if good else []
        batch = self._batch(chosen) if chosen else None
        return Prepared(batch, len(step.draws), tuple(errors), step.state)

    def _batch(self, chosen: Sequence[tuple[Draw, Tensor]]) -> Batch:
        draws, images = zip(*chosen, strict=True)
        texts = [draw.caption for draw in draws]
        tok_BL, mask_BL = self._preprocess.text(texts)
        has_videos = any(draw.example.kind == "video" for draw in draws)
        return Batch(
            torch.cat(images),
            tok_BL,
            mask_BL,
            torch.tensor([draw.number for draw in draws]),
            self._captions.get(texts) if self._captions is not None else None,
            tuple(len(image) for image in images) if has_videos else None,
            draws,
            self._preprocess.normalise if self._feature_cache is None else None,
        )

    def _image(self, draw: Draw) -> Tensor:
        """Pixels `[F,C,H,W]` uint8, one view for all frames; or the view, or the feature."""
        if self._feature_cache is not None:
            if self._feature_cache.is_broken(draw.number):
                raise BrokenExampleError("not_cached", f"{draw.example.id} could not be embedded")
            view = int(draw.rng().integers(self._feature_cache.num_views))
            return self._feature_cache.get([draw.number], [view])
        if self._kept is not None:
            self._kept.check(draw.number, draw.example)
            return torch.tensor(
                [View.draw(draw.number, self._augment, draw.rng())], dtype=torch.float64
            )
        frames = draw.example.frames(self._num_frames)
        return torch.stack(
            [random_view(img, self._preprocess, self._augment, draw.rng()) for img in frames]
        )


class PairBatches:
    """One epoch is every picture once, with one of its captions; short last batches are dropped.

    Attributes:
        num_pairs: of the whole data, broken ones included; a picture counts as often as it repeats.
        state: the place behind the batch that was given last, for `epoch(..., state)`; json-able.
    """

    def __init__(
        self,
        examples: Sequence[Example] | Order,
        preprocess: Preprocess,
        augment: AugmentConfig,
        *,
        batch_size: int,
        seed: int,
        feature_cache: FeatureCache | None = None,
        captions: CaptionFeatures | None = None,
        resident: ResidentPictures | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        num_frames: int = 16,
        max_broken_share: float = 0.05,
    ) -> None:
        """Take pictures in memory, or an order of a stream.

        Args:
            examples: the pictures; their numbers are their rows, also in the feature cache.
            preprocess: of the model.
            augment: how a view is drawn.
            batch_size: pairs per step and rank.
            seed: of everything random.
            feature_cache: of a frozen image tower, instead of pixels.
            captions: features of a frozen text tower, beside the tokens.
            resident: the pictures, decoded and on the device.
            rank: of this process.
            world_size: number of processes.
            num_workers: processes that load; 0 loads in this one. The batches are the same.
            num_frames: of a video.
            max_broken_share: of an epoch's pictures that may be broken.

        Raises:
            InputError: if there are fewer pictures than one batch.
        """
        order = MemoryOrder(examples) if isinstance(examples, Sequence) else examples
        self._stream = PairStream(
            order, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size
        )
        self._make = BatchMaker(
            preprocess,
            augment,
            num_frames=num_frames,
            feature_cache=feature_cache,
            captions=captions,
            kept=resident.kept if resident is not None else None,
        )
        self._resident = resident
        self.num_pairs = order.count()
        self._num_steps = _whole_steps(self.num_pairs, batch_size * world_size)
        self._num_given = self._num_steps * batch_size
        self._num_workers = num_workers if feature_cache is None else 0
        self._max_broken_share = max_broken_share
        self._world_size = world_size
        self.state = self._stream.start_of(0)

    def __len__(self) -> int:
        """Steps per epoch."""
        return self._num_steps

    def epoch(self, number: int, state: Mapping[str, Any] | None = None) -> Iterator[Batch]:
        """The batches of epoch `number`; equal numbers give equal batches.

        Args:
            number: of the epoch; not used with a state.
            state: go on behind this place instead.

        Raises:
            InputError: if more than the allowed share of the pictures is broken, or the state
                belongs to other data.
            CotsError: if a loading process ends.
        """
        steps = self._stream.epoch(number) if state is None else self._stream.resume(state)
        broken = BrokenCount(max_share=self._max_broken_share, num_expected=self._num_given)
        for prepared in prepare_all(self._make, steps, num_workers=self._num_workers):
            broken.add(prepared.num_draws, prepared.errors)
            self.state = prepared.state
            if prepared.batch is not None:
                yield self._with_pixels(prepared.batch)
            elif self._world_size > 1:  # the others would wait for this rank for ever
                raise InputError(f"no picture of a step can be read; {prepared.errors[0]}")
        broken.finish(f"epoch {number}")

    def _with_pixels(self, batch: Batch) -> Batch:
        """Resident pictures are here alone, not where batches are made."""
        return batch if self._resident is None else replace(batch, to_pixels=self._resident.views)


def _whole_steps(num_pictures: int, step_size: int) -> int:
    if num_pictures < step_size:
        raise InputError(
            f"{num_pictures} pictures do not fill one batch of {step_size}; lower batch_size or "
            "add data"
        )
    return num_pictures // step_size
