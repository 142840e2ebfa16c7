"""Features of a frozen image tower for every view of every picture: computed once, kept on disk.

Shape letters: M pictures, V views, D width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cots_model.errors import InputError
from cots_model.image_tower import ImageTower
from cots_model.preprocess import Preprocess
from index_builder.content import Location
from training.broken import BrokenCount
from training.cache_files import alone, cache_key
from training.config import AugmentConfig
from training.engine.progress import StepsShown
from training.example import BrokenExampleError, Example

log = logging.getLogger(__name__)

_VERSION = 2  # of views and of what is stored
_KEPT_EVERY = 64  # batches between notes of how far a cache is
_OPEN = 128  # files at once
_BATCH = 8  # larger ones fall out of the CPU caches: 38 ms a picture at 32, 18 ms at 8


class FeatureCache:
    """Features of a frozen image tower before projection, memory-mapped files of float16."""

    def __init__(self, parts: Sequence[tuple[Path, Sequence[int]]]) -> None:
        """Open finished files.

        Args:
            parts: of each file, `[m,V,D]`, the numbers of its m pictures among all M.
        """
        self._paths = [path for path, _ in parts]
        self._open = lru_cache(_OPEN)(partial(np.load, mmap_mode="r"))  # each costs a descriptor
        num_pictures = sum(len(rows) for _, rows in parts)
        self._place_M2 = np.zeros((num_pictures, 2), np.int64)  # number of the file, row in it
        for number, (_, rows) in enumerate(parts):
            self._place_M2[rows, 0] = number
            self._place_M2[rows, 1] = np.arange(len(rows))

    def __len__(self) -> int:
        """Number of pictures M."""
        return len(self._place_M2)

    @property
    def num_views(self) -> int:
        """Number of views V."""
        return int(self._open(self._paths[0]).shape[1])

    def is_broken(self, picture: int) -> bool:
        """Whether the picture could not be embedded; its features are not numbers then."""
        part, row = self._place_M2[picture]
        return bool(np.isnan(self._open(self._paths[part])[row, 0, 0]))

    def get(self, picture_B: Sequence[int], view_B: Sequence[int]) -> Tensor:
        """Features `[B,D]` float32 of the given pictures in the given views."""
        return self._take(picture_B, np.asarray(view_B, np.int64))

    def views(self, picture_B: Sequence[int]) -> Tensor:
        """Features `[B,V,D]` float32 of the given pictures in all views."""
        return self._take(picture_B, None)

    def _take(self, picture_B: Sequence[int], view_B: np.ndarray | None) -> Tensor:
        place_B2 = self._place_M2[np.asarray(picture_B, np.int64)]
        shape = self._open(self._paths[0]).shape[1 if view_B is None else 2 :]
        taken = np.empty((len(place_B2), *shape), np.float32)
        for number in np.unique(place_B2[:, 0]):
            part, mine_B = self._open(self._paths[number]), place_B2[:, 0] == number
            rows = place_B2[mine_B, 1]
            taken[mine_B] = part[rows] if view_B is None else part[rows, view_B[mine_B]]
        return torch.from_numpy(taken)


@dataclass(frozen=True)
class _Recipe:
    """Everything that decides what is in a file."""

    examples: Sequence[Example]
    tower: ImageTower
    preprocess: Preprocess
    augment: AugmentConfig
    seed: int
    bf16: bool


def cached_features(
    examples: Sequence[Example],
    tower: ImageTower,
    preprocess: Preprocess,
    augment: AugmentConfig,
    *,
    folder: Path,
    seed: int,
    bf16: bool = False,
    max_broken_share: float = 0.05,
) -> FeatureCache:
    """Open the cache for these pictures and this tower, computing what is not there.

    The pictures of a tar file or folder are a file of their own, so another source beside them
    costs only itself. It is named by what decides it, their contents among it: data that were
    moved or copied are known again.

    Args:
        examples: the M pictures.
        tower: frozen.
        preprocess: of the model.
        augment: how many views, and how they are drawn.
        folder: of all caches.
        seed: of the views.
        bf16: run the tower in autocast.
        max_broken_share: of pictures that may be broken; their features are not numbers.

    Raises:
        InputError: if more pictures than that are broken, or one is a video.
    """
    if any(example.kind == "video" for example in examples):
        raise InputError(
            "features of a frozen image tower are cached for pictures only, and the data hold "
            "videos; set freeze_image to false"
        )
    folder.mkdir(parents=True, exist_ok=True)
    together: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        together.setdefault(_container(example.location), []).append(row)
    broken = BrokenCount(max_share=max_broken_share, num_expected=len(examples))
    log.info("reading %d pictures' files, to tell whether their features are known", len(examples))
    decided = _of_all(tower, preprocess, augment, seed=seed, bf16=bf16)
    parts = []
    for rows in together.values():
        chosen = [examples[row] for row in rows]
        recipe = _Recipe(chosen, tower, preprocess, augment, seed, bf16)
        path = folder / f"features-{cache_key(decided, chosen)}.npy"
        if path.exists() or not _computed(path, recipe, broken):
            _try_again(path, recipe, broken)
        parts.append((path, rows))
    broken.finish("features")
    return FeatureCache(parts)


def _computed(path: Path, recipe: _Recipe, broken: BrokenCount) -> bool:
    """Compute a file, unless another process has meanwhile; whether it was this one."""
    with alone(path):
        if path.exists():
            return False
        _compute(path, recipe, broken)
        return True


def _try_again(path: Path, recipe: _Recipe, broken: BrokenCount) -> None:
    """Count the pictures of a finished file; broken ones are embedded if they can be read now."""
    feature_MVD = np.load(path, mmap_mode="r")
    if not np.isnan(feature_MVD[:, 0, 0]).any():
        broken.add(len(feature_MVD), [])
        return
    with alone(path):
        feature_MVD = np.lib.format.open_memmap(path, "r+")
        filling = _Filling(feature_MVD, recipe, _ready(recipe.tower), broken, gone=set())
        filling.try_again(len(feature_MVD))
        feature_MVD.flush()


def _ready(tower: ImageTower) -> ImageTower:
    """In evaluation mode, in the layout that is fastest."""
    return tower.to(memory_format=torch.channels_last).eval()


def _container(location: Location) -> str:
    """The archive, or the folder, of a picture."""
    return location.path if location.offset_bytes is not None else os.path.dirname(location.path)


def _compute(path: Path, recipe: _Recipe, broken: BrokenCount) -> None:
    """Write the file, or the rest of it: what a process that ended has done is kept beside it."""
    num_pictures, num_views = len(recipe.examples), recipe.augment.num_views
    where = _container(recipe.examples[0].location)
    log.info("embedding %d views of %d pictures in %s", num_views, num_pictures, where)
    unfinished, done = path.with_suffix(".partial"), _Done(path.with_suffix(".done"))
    shape = (num_pictures, num_views, recipe.tower.width)
    first = done.read() if unfinished.exists() else 0
    feature_MVD = np.lib.format.open_memmap(unfinished, "r+" if first else "w+", np.float16, shape)
    filling = _Filling(feature_MVD, recipe, _ready(recipe.tower), broken, gone=set())
    filling.try_again(first)
    starts = range(first, num_pictures, _BATCH)
    with StepsShown(log, "features", total=len(starts)) as shown:
        for start in starts:
            if (start - first) % (_BATCH * _KEPT_EVERY) == 0:
                feature_MVD.flush()
                done.write(start)
            filling.fill(range(start, min(start + _BATCH, num_pictures)))
            shown.step(f"{start + _BATCH:,} pictures")
    feature_MVD.flush()
    unfinished.replace(path)
    done.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Filling:
    """A cache in the making.

    Attributes:
        feature_MVD: the file.
        recipe: of it.
        tower: in the layout that is fastest.
        broken: counts pictures, each once, however many of its views cannot be read.
        gone: rows of broken ones.
    """

    feature_MVD: np.ndarray
    recipe: _Recipe
    tower: ImageTower
    broken: BrokenCount
    gone: set[int]

    def try_again(self, num_done: int) -> None:
        """Count what an earlier process did; what it could not read may be readable now."""
        bad_M = np.isnan(self.feature_MVD[:num_done, 0, 0])
        self.broken.add(int((~bad_M).sum()), [])
        self.fill(np.flatnonzero(bad_M).tolist())

    def fill(self, rows: Sequence[int]) -> None:
        """Embed all views of some pictures."""
        self.broken.add(len(rows), [])
        todo = [(row, view) for row in rows for view in range(self.recipe.augment.num_views)]
        for start in range(0, len(todo), _BATCH):
            views = self._views(todo[start : start + _BATCH])
            if views:
                self._embed(views)
        self.feature_MVD[sorted(self.gone.intersection(rows))] = np.nan

    def _views(self, todo: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
        """Pixels `[3,H,W]` by row and view, without those that cannot be read."""
        found = {}
        for row, view in todo:
            if row in self.gone:
                continue
            try:
                found[row, view] = _view(self.recipe, row, view)
            except BrokenExampleError as err:
                self.gone.add(row)
                self.broken.add(0, [err])
        return found

    def _embed(self, views: dict[tuple[int, int], Tensor]) -> None:
        rows, numbers = zip(*views, strict=True)
        feature_BD = _features(self.tower, torch.stack(list(views.values())), self.recipe.bf16)
        if not np.isfinite(feature_BD).all():
            first = self.recipe.examples[rows[0]].id
            raise InputError(
                f"features of {first} or of the {len(rows) - 1} views after it do not fit float16; "
                "take other first weights, or freeze_image: false"
            )
        self.feature_MVD[list(rows), list(numbers)] = feature_BD


@dataclass(frozen=True)
class _Done:
    """How many pictures of an unfinished cache are in it."""

    path: Path

    def read(self) -> int:
        try:
            return int(self.path.read_text())
        except (OSError, ValueError):
            return 0

    def write(self, count: int) -> None:
        partial = self.path.with_suffix(".count")
        partial.write_text(str(count))
        partial.replace(self.path)


def _features(tower: ImageTower, img_BCHW: Tensor, bf16: bool) -> np.ndarray:
    """Features `[B,D]` float16."""
    device = next(tower.parameters()).device
    img_BCHW = img_BCHW.to(device, memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return np.asarray(tower.feature(img_BCHW).cpu().to(torch.float16).numpy())


def _view(recipe: _Recipe, row: int, view: int) -> Tensor:
    img = recipe.examples[row].picture()
    if view == 0:
        return recipe.preprocess.image(img)
    rng = np.random.default_rng([recipe.seed, row, view])
    return recipe.preprocess.normalise(random_view(img, recipe.preprocess, recipe.augment, rng))


def random_view(
    img: Image.Image, preprocess: Preprocess, augment: AugmentConfig, rng: np.random.Generator
) -> Tensor:
    """Pixels `[3,H,W]` uint8 of a random crop, mirrored at random if `augment.flip`."""
    pixels_CHW = preprocess.pixels(random_crop(img, augment.min_area, rng))
    if augment.flip and rng.random() < 0.5:
        return pixels_CHW.flip(-1)
    return pixels_CHW


def _share_and_ratio(min_area: float, rng: np.random.Generator) -> tuple[float, float]:
    """Of the area that a crop keeps, and of its width to its height, both in shares."""
    share = rng.uniform(min_area, 1.0)
    stretch = min(math.log(4 / 3), math.log(1 / share))  # more would not fit into the picture
    return share, math.exp(rng.uniform(-stretch, stretch))


def random_box(
    augment: AugmentConfig, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, width and height, in shares of a picture's sides, of such a crop."""
    share, ratio = _share_and_ratio(augment.min_area, rng)
    width, height = math.sqrt(share * ratio), math.sqrt(share / ratio)
    return rng.uniform(0, 1 - width), rng.uniform(0, 1 - height), width, height


def random_crop(img: Image.Image, min_area: float, rng: np.random.Generator) -> Image.Image:
    """A random crop of at least `min_area` of the picture, stretched by up to 4:3 either way."""
    share, ratio = _share_and_ratio(min_area, rng)
    width = max(1, round(img.width * math.sqrt(share * ratio)))
    height = max(1, round(img.height * math.sqrt(share / ratio)))
    left = int(rng.integers(img.width - width + 1))
    top = int(rng.integers(img.height - height + 1))
    return img.crop((left, top, left + width, top + height))


def _of_all(
    tower: ImageTower, preprocess: Preprocess, augment: AugmentConfig, *, seed: int, bf16: bool
) -> bytes:
    """A hash of what decides every file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    settings = [
        tower.config.model_dump(mode="json"),
        preprocess.config.model_dump(mode="json"),
        augment.model_dump(mode="json"),
        [seed, bf16],
    ]
    digest.update(json.dumps([_VERSION, settings]).encode())
    return digest.digest()
