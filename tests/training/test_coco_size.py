"""Scores of as many pictures and captions as MSCOCO's 5K test has, against a count row by row."""

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index_builder.content import Location
from training.evaluate import embed
from training.example import Example

NUM_IMAGES, NUM_CAPTIONS, DIM = 5_000, 25_010, 32
GRAIN = 2**10  # features are multiples of 1/1024: every score is exact in float32, ties are ties


class Vectors:
    """Stands for an encoder: gives rows that were made before, in the order of the pictures."""

    def __init__(self, image_NE: np.ndarray, text_ME: np.ndarray) -> None:
        self._image_NE, self._text_ME = image_NE, text_ME
        self._next = 0

    def encode_images(self, imgs: Sequence[Image.Image]) -> np.ndarray:
        self._next += len(imgs)
        return self._image_NE[self._next - len(imgs) : self._next]

    def encode_texts(self, texts: Sequence[str], *, batch_size: int) -> np.ndarray:
        return self._text_ME[[int(text) for text in texts]]


def unit_vectors(x_BE: np.ndarray) -> np.ndarray:
    """Of length 1 up to the grain."""
    x_BE = x_BE / np.linalg.norm(x_BE, axis=1, keepdims=True)
    return (np.round(x_BE * GRAIN) / GRAIN).astype(np.float32)


def rank(score_K: np.ndarray, own: int) -> int:
    """From 0: all that are better, and those as good that come before."""
    better, equal = (score_K > score_K[own]).sum(), (score_K[:own] == score_K[own]).sum()
    return int(better + equal)


def test_5000_pictures_and_25010_captions_are_counted_rightly_in_little_memory(tmp_path: Path):
    """Ten pictures have six captions, the rest five, so that `caption // 5` is wrong."""
    rng = np.random.default_rng(0)
    count_N = np.full(NUM_IMAGES, 5)
    count_N[rng.choice(NUM_IMAGES, NUM_CAPTIONS - 5 * NUM_IMAGES, replace=False)] = 6
    end_N = np.cumsum(count_N)
    picture_of_M = np.repeat(np.arange(NUM_IMAGES), count_N)
    image_NE = unit_vectors(rng.normal(size=(NUM_IMAGES, DIM)))
    text_ME = unit_vectors(image_NE[picture_of_M] + rng.normal(size=(NUM_CAPTIONS, DIM)) / 2.5)
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    place = Location(str(tmp_path / "one.png"))
    examples = [
        Example(str(row), place, tuple(str(text) for text in range(end - count, end)))
        for row, (end, count) in enumerate(zip(end_N, count_N, strict=True))
    ]

    tracemalloc.start()
    try:
        metrics = embed(Vectors(image_NE, text_ME), examples, batch_size=256).metrics()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < NUM_IMAGES * NUM_CAPTIONS * 4 / 4  # of the matrix in float32

    image_NE, text_ME = (np.float64(x) * GRAIN for x in (image_NE, text_ME))  # whole numbers
    to_image = [
        rank(image_NE @ text_E, own) for text_E, own in zip(text_ME, picture_of_M, strict=True)
    ]
    to_text = []
    for image_E, end, count in zip(image_NE, end_N, count_N, strict=True):
        score_M = text_ME @ image_E
        to_text.append(min(rank(score_M, own) for own in range(end - count, end)))
    for recall, ranks in ((metrics.text_to_image, to_image), (metrics.image_to_text, to_text)):
        assert recall.num_queries == len(ranks)
        assert 5 < recall.r1 < recall.r5 < recall.r10 < 95  # neither chance nor trivial
        assert recall.median_rank == np.median(ranks) + 1
        for k, share in ((1, recall.r1), (5, recall.r5), (10, recall.r10)):
            assert share == pytest.approx(100 * np.mean(np.array(ranks) < k), abs=1e-9)
