"""What a frozen stem gives for every view of every picture: computed once, kept on disk.

Shape letters: M pictures, V views, C channels, H and W cells.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cots_model.image_tower import Stem
from cots_model.preprocess import Preprocess
from training.config import AugmentConfig
from training.data import Example

log = logging.getLogger(__name__)

_BATCH = 8  # larger ones fall out of the CPU caches: 38 ms a picture at 32, 18 ms at 8


class StemCache:
    """Feature maps of a frozen stem body, `[M,V,C,H,W]` float16, memory-mapped."""

    def __init__(self, path: Path) -> None:
        """Open a finished cache file."""
        self.maps_MVCHW = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        """Number of pictures M."""
        return int(self.maps_MVCHW.shape[0])

    @property
    def num_views(self) -> int:
        """Number of views V."""
        return int(self.maps_MVCHW.shape[1])

    def get(self, picture_B: Sequence[int], view_B: Sequence[int]) -> Tensor:
        """Maps `[B,C,H,W]` float32 of the given pictures in the given views."""
        maps_BCHW = self.maps_MVCHW[np.asarray(picture_B), np.asarray(view_B)]
        return torch.from_numpy(maps_BCHW.astype(np.float32))


def cached_maps(
    examples: Sequence[Example],
    stem: Stem,
    preprocess: Preprocess,
    augment: AugmentConfig,
    *,
    folder: Path,
    seed: int,
) -> StemCache:
    """Open the cache for these pictures and this stem, computing it if it is not there.

    Raises:
        InputError: if a picture cannot be decoded (training data should be clean; remove it).
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"stem-{_key(examples, stem, preprocess, augment, seed)}.npy"
    if not path.exists():
        partial = path.with_suffix(f".partial-{os.getpid()}")
        try:
            _compute(partial, examples, stem, preprocess, augment, seed)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return StemCache(path)


def _compute(
    path: Path,
    examples: Sequence[Example],
    stem: Stem,
    preprocess: Preprocess,
    augment: AugmentConfig,
    seed: int,
) -> None:
    device = next(stem.parameters()).device
    stem = stem.to(memory_format=torch.channels_last)
    log.info("embedding %d views of %d pictures", augment.num_views, len(examples))
    maps_MVCHW = None
    todo = [(row, view) for row in range(len(examples)) for view in range(augment.num_views)]
    for start in tqdm(range(0, len(todo), _BATCH), desc="stem", unit="batch", disable=None):
        batch = todo[start : start + _BATCH]
        pixels = [
            _view(examples[row], view, preprocess, augment, (seed, row)) for row, view in batch
        ]
        img_BCHW = torch.stack(pixels).to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            map_BCHW = stem.body(img_BCHW).cpu().contiguous().numpy().astype(np.float16)
        if maps_MVCHW is None:
            shape = (len(examples), augment.num_views, *map_BCHW.shape[1:])
            maps_MVCHW = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        rows, views = zip(*batch, strict=True)
        maps_MVCHW[list(rows), list(views)] = map_BCHW
    if maps_MVCHW is not None:
        maps_MVCHW.flush()


def _view(
    example: Example,
    view: int,
    preprocess: Preprocess,
    augment: AugmentConfig,
    seed: tuple[int, int],
) -> Tensor:
    img = example.picture()
    if view == 0:
        return preprocess.image(img)
    rng = np.random.default_rng([*seed, view])
    return preprocess.image(random_view(img, augment, rng))


def random_view(img: Image.Image, augment: AugmentConfig, rng: np.random.Generator) -> Image.Image:
    """A random crop of at least `min_area` of the picture, stretched by up to 4:3 either way."""
    share = rng.uniform(augment.min_area, 1.0)
    stretch = min(math.log(4 / 3), math.log(1 / share))  # more would not fit into the picture
    ratio = math.exp(rng.uniform(-stretch, stretch))
    width = max(1, round(img.width * math.sqrt(share * ratio)))
    height = max(1, round(img.height * math.sqrt(share / ratio)))
    left = int(rng.integers(img.width - width + 1))
    top = int(rng.integers(img.height - height + 1))
    return img.crop((left, top, left + width, top + height))


def _key(
    examples: Sequence[Example],
    stem: Stem,
    preprocess: Preprocess,
    augment: AugmentConfig,
    seed: int,
) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(stem.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    settings = [
        preprocess.config.model_dump(mode="json"),
        augment.num_views,
        augment.min_area,
        seed,
    ]
    pictures = [[e.id, e.location.path, e.location.offset_bytes] for e in examples]
    digest.update(json.dumps([settings, pictures]).encode())
    return digest.hexdigest()[:16]
