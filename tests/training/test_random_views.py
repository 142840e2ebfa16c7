"""Views of a picture: crops of enough of it, all different, half of them mirrored."""

import numpy as np
import pytest
from PIL import Image

from cots_model.config import PreprocessConfig
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer
from training.config import AugmentConfig
from training.feature_cache import random_crop, random_view

TWO_VIEWS = AugmentConfig(num_views=2)


@pytest.fixture(scope="module")
def preprocess() -> Preprocess:
    return Preprocess(PreprocessConfig(image_size=64), make_tokenizer())


@pytest.mark.parametrize("size", [(1, 1), (30, 2000), (900, 60), (640, 480)])
@pytest.mark.parametrize("min_area", [0.05, 0.5, 1.0])
def test_random_crops_keep_enough_of_the_picture(size, min_area):
    rng = np.random.default_rng(0)
    img = Image.new("RGB", size)
    shares = []
    for _ in range(200):
        view = random_crop(img, min_area, rng)
        assert 1 <= view.width <= img.width
        assert 1 <= view.height <= img.height
        shares.append(view.width * view.height / (img.width * img.height))
        stretch = (view.width / img.width) / (view.height / img.height)
        assert 0.7 <= stretch <= 1.43
    assert min(shares) >= 0.95 * min_area
    if size != (1, 1) and min_area < 1:
        assert min(shares) < min_area + 0.1
        assert max(shares) > 0.9


def test_random_views_show_different_parts(preprocess):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    img = Image.fromarray(pixels)
    views = {random_view(img, preprocess, TWO_VIEWS, rng).numpy().tobytes() for _ in range(10)}
    assert len(views) == 10


def test_random_views_are_mirrored_about_half_of_the_time(preprocess):
    img = Image.new("RGB", (64, 64), "white")
    img.paste("black", (0, 0, 32, 64))
    for flip, low, high in ((True, 30, 70), (False, 0, 0)):
        augment, rng = AugmentConfig(min_area=1.0, flip=flip), np.random.default_rng(0)
        views = [random_view(img, preprocess, augment, rng) for _ in range(100)]
        assert (
            low
            <= sum(bool(v[..., :32].float().mean() > v[..., 32:].float().mean()) for v in views)
            <= high
        )
