"""Pictures that stay in the device's memory: decoded once, cropped there at every visit.

    pictures = ResidentPictures.load(
        examples, preprocess, side=384, device=device, folder=Path("cache"), num_workers=8
    )
    img_BCHW = pictures.views(view_B6)    # normalised, ready for the image tower

For sets that fit (442 kB a picture at 384 pixels): what trains a small model on a large GPU would
otherwise wait for decoding. Crops are interpolated from the kept picture, not from the file's own
pixels: what the kept side lost stays lost. Every process keeps all pictures; decoded ones lie on
disk for the next run too.

Shape letters: M pictures, S side that is kept, B batch, C channels, H and W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cots_model.errors import ConfigError, InputError
from cots_model.preprocess import Normalise, Preprocess
from training.config import AugmentConfig
from training.decoded_pictures import decoded_pictures
from training.example import BrokenExampleError, Example
from training.feature_cache import random_box

log = logging.getLogger(__name__)

_AT_ONCE = 256  # pictures that are copied together


class View(NamedTuple):
    """What one visit sees of a picture: a box in shares of its sides, mirrored or not.

    Attributes:
        row: of the picture among all M.
        left: of the box.
        top: of the box.
        width: of the box.
        height: of the box.
        mirrored: 1 or 0.
    """

    row: int
    left: float
    top: float
    width: float
    height: float
    mirrored: int

    @classmethod
    def draw(cls, row: int, augment: AugmentConfig, rng: np.random.Generator) -> View:
        """A random view, distributed as `training.feature_cache.random_view`."""
        box = random_box(augment, rng)
        return cls(row, *box, int(augment.flip and rng.random() < 0.5))


@dataclass(frozen=True)
class KeptPictures:
    """Which pictures are kept; light, can be pickled.

    Attributes:
        broken: rows that hold no picture.
    """

    broken: frozenset[int]

    def check(self, row: int, example: Example) -> None:
        """Refuse a picture that could not be decoded.

        Raises:
            BrokenExampleError: if it is one.
        """
        if row in self.broken:
            raise BrokenExampleError("not_kept", f"{example.id} could not be decoded")


class ResidentPictures:
    """All M whole pictures of a run, as bytes on one device.

    Attributes:
        kept: what those who draw views must know.
    """

    def __init__(self, pixels_MCSS: Tensor, kept: KeptPictures, preprocess: Preprocess) -> None:
        """Take pictures.

        Args:
            pixels_MCSS: uint8, stretched to squares.
            kept: which of them are there.
            preprocess: of the model.
        """
        self._pixels_MCSS = pixels_MCSS
        self.kept = kept
        self._side = preprocess.image_size
        self._normalise: Normalise = preprocess.normalise

    @classmethod
    def load(
        cls,
        examples: Sequence[Example],
        preprocess: Preprocess,
        *,
        side: int,
        device: torch.device,
        folder: Path,
        num_workers: int = 0,
        max_broken_share: float = 0.05,
    ) -> ResidentPictures:
        """Take all pictures, decoded by an earlier run or by this one.

        Args:
            examples: the M pictures.
            preprocess: of the model.
            side: S; below the model's side / sqrt(augment.min_area), small crops are blurred.
            device: that keeps them.
            folder: of decoded pictures, a file for each list of them and side.
            num_workers: processes that decode.
            max_broken_share: of pictures that may be broken.

        Raises:
            ConfigError: if the model cuts a square out of pictures; what is kept is stretched.
            InputError: if more than that are broken, one is a video, or the device or the disk is
                too small.
        """
        if preprocess.config.resize != "squash":
            raise ConfigError(
                f"data.resident_side keeps pictures stretched to squares, and this model's are "
                f"resized by {preprocess.config.resize!r}; leave data.resident_side out"
            )
        if any(example.kind == "video" for example in examples):
            raise InputError("data.resident_side keeps pictures only; leave it out for videos")
        pixels_MCSS = _empty(len(examples), side, device)
        decoded = decoded_pictures(
            examples,
            side=side,
            folder=folder,
            num_workers=num_workers,
            max_broken_share=max_broken_share,
        )
        log.info("keeping %d pictures of %d pixels on %s", len(examples), side, device)
        for first in range(0, len(examples), _AT_ONCE):
            part_KCSS = np.array(decoded.pixels_MCSS[first : first + _AT_ONCE])
            pixels_MCSS[first : first + _AT_ONCE] = torch.from_numpy(part_KCSS).to(device)
        return cls(pixels_MCSS, KeptPictures(decoded.broken), preprocess)

    def views(self, view_B6: Tensor) -> Tensor:
        """Normalised pixels `[B,3,H,W]` of `View` rows; bicubic, smaller pictures by area."""
        row_B, left_B, top_B, width_B, height_B, mirrored_B = view_B6.to(
            self._pixels_MCSS.device
        ).unbind(dim=1)
        pixels_BCSS = self._pixels_MCSS[row_B.long()].float()
        times = max(1, round(self._pixels_MCSS.shape[-1] / self._side))  # so that none is skipped
        size = [len(row_B), 3, times * self._side, times * self._side]
        zero_B = torch.zeros_like(left_B)
        across_B3 = torch.stack(
            [width_B * (1 - 2 * mirrored_B), zero_B, 2 * left_B + width_B - 1], dim=1
        )
        down_B3 = torch.stack([zero_B, height_B, 2 * top_B + height_B - 1], dim=1)
        turn_B23 = torch.stack([across_B3, down_B3], dim=1).float()
        grid_BHW2 = F.affine_grid(turn_B23, size, align_corners=False)
        img_BCHW = F.grid_sample(
            pixels_BCSS, grid_BHW2, mode="bicubic", padding_mode="border", align_corners=False
        )
        return self._normalise(F.avg_pool2d(img_BCHW, times).clamp(0, 255))


def _empty(num_pictures: int, side: int, device: torch.device) -> Tensor:
    try:
        return torch.zeros(num_pictures, 3, side, side, dtype=torch.uint8, device=device)
    except RuntimeError as err:  # out of memory, on a GPU or not
        needed = num_pictures * 3 * side * side / 2**30
        raise InputError(
            f"{num_pictures:,} pictures of {side} pixels take {needed:.1f} GiB, and {device} has "
            "no room for them; lower data.resident_side or leave it out"
        ) from err
