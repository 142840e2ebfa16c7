"""The cache of a frozen stem: right maps, kept while nothing changes, never half done."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.config import PreprocessConfig, StemConfig
from cots_model.errors import InputError
from cots_model.image_tower import Stem
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer
from tests.training.conftest import write_folder
from training.batches import PairBatches
from training.config import AugmentConfig
from training.data import read_examples
from training.stem_cache import cached_maps, random_view

TWO_VIEWS = AugmentConfig(num_views=2)


@pytest.fixture(scope="module")
def stem() -> Stem:
    torch.manual_seed(0)
    return Stem(StemConfig(arch="efficientnet_lite0"))  # as a run makes it


@pytest.fixture(scope="module")
def preprocess() -> Preprocess:
    return Preprocess(PreprocessConfig(image_size=64), make_tokenizer())


@pytest.fixture
def photos(tmp_path):
    pairs = [(a, b) for a in ("red", "blue", "white") for b in ("green", "black", "yellow")]
    return write_folder(tmp_path / "photos", pairs)


@pytest.fixture
def cache(photos, stem, preprocess, tmp_path):
    def make(augment=TWO_VIEWS, seed=0, stem=stem, preprocess=preprocess, count=9):
        examples = read_examples([str(photos)])[:count]
        folder = tmp_path / "cache"
        return cached_maps(examples, stem, preprocess, augment, folder=folder, seed=seed)

    return make


def files(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir()}


def test_cache_holds_what_the_stem_gives(cache, photos, stem, preprocess):
    made = cache()
    assert (len(made), made.num_views) == (9, 2)
    for row, example in enumerate(read_examples([str(photos)])):
        pixels_CHW = preprocess.image(example.picture())
        with torch.inference_mode():
            body_1CHW = copy.deepcopy(stem).eval().body(pixels_CHW[None])
        stored_1CHW = made.get([row], [0])
        assert stored_1CHW.dtype == torch.float32
        torch.testing.assert_close(stored_1CHW, body_1CHW, rtol=2e-3, atol=2e-3)
    assert made.get([0], [0]).std() > 0.01


def test_cache_gives_pictures_and_views_in_the_order_asked(cache):
    made = cache()
    picture_B, view_B = [8, 0, 3, 0], [1, 0, 1, 1]
    maps_BCHW = made.get(picture_B, view_B)
    for got, picture, view in zip(maps_BCHW, picture_B, view_B, strict=True):
        np.testing.assert_array_equal(got, made.maps_MVCHW[picture, view].astype(np.float32))
    assert not torch.equal(maps_BCHW[1], maps_BCHW[3])


def test_cache_is_reused_while_nothing_changes(cache, tmp_path):
    cache()
    (name,) = files(tmp_path)
    stamp = (tmp_path / "cache" / name).stat()
    cache()
    assert files(tmp_path) == {name}
    assert (tmp_path / "cache" / name).stat().st_mtime_ns == stamp.st_mtime_ns
    assert (tmp_path / "cache" / name).stat().st_ino == stamp.st_ino


def test_cache_is_another_for_other_contents(cache, photos, tmp_path, stem):
    cache()
    other_stem = Stem(StemConfig(arch="efficientnet_lite0"))
    other_stem.load_state_dict(stem.state_dict())
    with torch.no_grad():
        other_stem.net.bn1.running_mean[0] += 1e-3
    cropped = Preprocess(PreprocessConfig(image_size=64, resize="crop"), make_tokenizer())
    changes = [
        {"augment": AugmentConfig(num_views=1)},
        {"augment": AugmentConfig(num_views=2, min_area=0.9)},
        {"seed": 1},
        {"count": 8},
        {"stem": other_stem},
        {"preprocess": cropped},
    ]
    for number, change in enumerate(changes, start=2):
        cache(**change)
        assert len(files(tmp_path)) == number, change
    (photos / "00.png").rename(photos / "000.png")
    (photos / "00.txt").rename(photos / "000.txt")
    cache()
    assert len(files(tmp_path)) == len(changes) + 2
    cache(augment=AugmentConfig(num_views=2, flip=False))  # done after the cache
    assert len(files(tmp_path)) == len(changes) + 2


def test_cache_leaves_nothing_behind_when_interrupted(cache, photos, tmp_path):
    (photos / "08.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"picture 08\.png"):
        cache()
    assert files(tmp_path) == set()


def test_cached_training_batches_are_mirrored_maps(cache, photos, preprocess):
    augment = AugmentConfig(num_views=2, flip=True)
    made = cache(augment)
    batches = PairBatches(
        read_examples([str(photos)]), preprocess, augment, batch_size=9, seed=0, stem_cache=made
    )
    (batch,) = batches.epoch(0)
    num_mirrored = 0
    for row, got_CHW in zip(batch.image_id_B.tolist(), batch.image_BCHW, strict=True):
        plain = [made.get([row], [view])[0] for view in (0, 1)]
        mirrored = [view_CHW.flip(-1) for view_CHW in plain]
        assert any(torch.equal(got_CHW, view_CHW) for view_CHW in plain + mirrored)
        num_mirrored += not any(torch.equal(got_CHW, view_CHW) for view_CHW in plain)
    assert num_mirrored > 0


@pytest.mark.parametrize("size", [(1, 1), (30, 2000), (900, 60), (640, 480)])
@pytest.mark.parametrize("min_area", [0.05, 0.5, 1.0])
def test_random_views_keep_enough_of_the_picture(size, min_area):
    augment, rng = AugmentConfig(min_area=min_area), np.random.default_rng(0)
    img = Image.new("RGB", size)
    shares = []
    for _ in range(200):
        view = random_view(img, augment, rng)
        assert 1 <= view.width <= img.width
        assert 1 <= view.height <= img.height
        shares.append(view.width * view.height / (img.width * img.height))
        stretch = (view.width / img.width) / (view.height / img.height)
        assert 0.7 <= stretch <= 1.43
    assert min(shares) >= 0.95 * min_area
    if size != (1, 1) and min_area < 1:
        assert min(shares) < min_area + 0.1
        assert max(shares) > 0.9


def test_random_views_show_different_parts():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    views = {random_view(Image.fromarray(pixels), TWO_VIEWS, rng).tobytes() for _ in range(10)}
    assert len(views) == 10
