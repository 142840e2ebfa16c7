"""The cache of a frozen image tower: right, kept while nothing changes, never half done."""

import copy
import dataclasses
import fcntl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.config import ImageTowerConfig, PreprocessConfig
from cots_model.errors import InputError
from cots_model.image_tower import ImageTower
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer
from tests.training.conftest import write_folder
from training import feature_cache
from training.batches import PairBatches
from training.config import AugmentConfig
from training.data import read_examples
from training.example import BrokenExampleError
from training.feature_cache import cached_features

TWO_VIEWS = AugmentConfig(num_views=2)


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    torch.manual_seed(0)
    return make_tower(drop_rate=0.5)  # must not drop while caching


def make_tower(drop_rate: float = 0.0) -> ImageTower:
    config = ImageTowerConfig(
        arch="efficientnet_lite0", image_size=64, options={"drop_rate": drop_rate}
    )
    return ImageTower(config)  # in training mode, as a run makes it


@pytest.fixture(scope="module")
def preprocess() -> Preprocess:
    return Preprocess(PreprocessConfig(image_size=64), make_tokenizer())


@pytest.fixture
def photos(tmp_path):
    pairs = [(a, b) for a in ("red", "blue", "white") for b in ("green", "black", "yellow")]
    return write_folder(tmp_path / "photos", pairs)


@pytest.fixture
def cache(photos, tower, preprocess, tmp_path):
    def make(
        augment=TWO_VIEWS,
        seed=0,
        tower=tower,
        preprocess=preprocess,
        count=9,
        bf16=False,
        max_share=0.05,
    ):
        return cached_features(
            read_examples([str(photos)])[:count],
            tower,
            preprocess,
            augment,
            folder=tmp_path / "cache",
            seed=seed,
            bf16=bf16,
            max_broken_share=max_share,
        )

    return make


def files(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir()}


def test_cache_holds_the_features(cache, photos, tower, preprocess):
    made = cache()
    assert (len(made), made.num_views) == (9, 2)
    for row, example in enumerate(read_examples([str(photos)])):
        pixels_CHW = preprocess.image(example.picture())
        with torch.inference_mode():
            feature_1D = copy.deepcopy(tower).eval().feature(pixels_CHW[None])
        stored_1D = made.get([row], [0])
        assert stored_1D.dtype == torch.float32
        torch.testing.assert_close(stored_1D, feature_1D, rtol=2e-3, atol=2e-3)
    assert made.get([0], [0]).std() > 0.01


def test_cache_gives_pictures_and_views_in_the_order_asked(cache):
    made = cache()
    picture_B, view_B = [8, 0, 3, 0], [1, 0, 1, 1]
    feature_BD = made.get(picture_B, view_B)
    for got, picture, view in zip(feature_BD, picture_B, view_B, strict=True):
        torch.testing.assert_close(got, made.views([picture])[0, view], rtol=0, atol=0)
    assert not torch.equal(feature_BD[1], feature_BD[3])


def test_cache_is_reused_while_nothing_changes(cache, tmp_path):
    cache()
    (name,) = files(tmp_path)
    stamp = (tmp_path / "cache" / name).stat()
    cache()
    assert files(tmp_path) == {name}
    assert (tmp_path / "cache" / name).stat().st_mtime_ns == stamp.st_mtime_ns
    assert (tmp_path / "cache" / name).stat().st_ino == stamp.st_ino


def test_cache_is_another_for_other_contents(cache, photos, tmp_path, tower):
    cache()
    other_tower = make_tower(drop_rate=0.5)
    other_tower.load_state_dict(tower.state_dict())
    with torch.no_grad():
        other_tower.trunk.bn1.running_mean[0] += 1e-3
    other_options = make_tower(drop_rate=0.1)
    other_options.load_state_dict(tower.state_dict())
    cropped = Preprocess(PreprocessConfig(image_size=64, resize="crop"), make_tokenizer())
    changes = [
        {"augment": AugmentConfig(num_views=1)},
        {"augment": AugmentConfig(num_views=2, min_area=0.9)},
        {"seed": 1},
        {"bf16": True},
        {"count": 8},
        {"tower": other_tower},
        {"tower": other_options},
        {"augment": AugmentConfig(num_views=2, flip=False)},
        {"preprocess": cropped},
    ]
    for number, change in enumerate(changes, start=2):
        cache(**change)
        assert len(files(tmp_path)) == number, change


def test_data_that_moved_are_known_and_other_sources_cost_nothing(
    photos, tower, preprocess, tmp_path, caplog
):
    caplog.set_level("INFO")

    def make(*sources):
        examples = read_examples([str(source) for source in sources])
        folder = tmp_path / "cache"
        made = cached_features(examples, tower, preprocess, TWO_VIEWS, folder=folder, seed=0)
        return examples, made

    _, first = make(photos)
    moved = photos.rename(tmp_path / "moved")
    more = write_folder(tmp_path / "more", [("pink", "grey"), ("teal", "gold")])
    caplog.clear()
    examples, both = make(more, moved)
    assert "embedding 2 views of 2 pictures" in caplog.text
    assert "of 9 pictures" not in caplog.text
    assert len(both) == len(examples) == 11
    assert torch.equal(both.views(range(2, 11)), first.views(range(9)))
    assert torch.equal(both.get([4, 0, 10], [1, 0, 1]), both.views([4, 0, 10])[range(3), [1, 0, 1]])
    with torch.inference_mode():
        pixels_CHW = preprocess.image(examples[1].picture())
        feature_1D = copy.deepcopy(tower).eval().feature(pixels_CHW[None])
    torch.testing.assert_close(both.get([1], [0]), feature_1D, rtol=2e-3, atol=2e-3)


def test_broken_pictures_of_a_finished_file_count_again(cache, photos, caplog):
    (photos / "05.png").write_bytes(b"no picture")
    for _ in range(2):
        caplog.clear()
        cache(max_share=0.12)
        assert "features: 1 of 9 pictures left out (unsupported_format 1)" in caplog.text
    with pytest.raises(InputError, match="1 of 9 pictures are broken"):
        cache(max_share=0.1)


def test_an_interrupted_cache_is_finished_by_the_next_run(cache, tmp_path, monkeypatch):
    expected = cache().views(range(9))
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    monkeypatch.setattr(feature_cache, "_BATCH", 1)  # pictures between notes, views at a time
    monkeypatch.setattr(feature_cache, "_KEPT_EVERY", 2)
    features, calls = feature_cache._features, []

    def counted(*args):
        calls.append(args)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return features(*args)

    monkeypatch.setattr(feature_cache, "_features", counted)
    with pytest.raises(KeyboardInterrupt):
        cache()
    assert {Path(name).suffix for name in files(tmp_path)} == {".partial", ".done", ".lock"}
    finished = cache()
    assert len(calls) == 14 + 2 * 3  # of nine pictures, six were kept
    np.testing.assert_allclose(finished.views(range(9)), expected, rtol=1e-2, atol=1e-3)
    assert {Path(name).suffix for name in files(tmp_path)} == {".npy"}


def emptied(tmp_path) -> None:
    for path in (tmp_path / "cache").iterdir():
        path.unlink()


def unreadable(monkeypatch, rows, views=(0, 1)) -> None:
    """As if a disk did not give some views."""
    read = feature_cache._view

    def view(recipe, row, number):
        if row in rows and number in views:
            raise BrokenExampleError("missing", f"picture {row} is gone")
        return read(recipe, row, number)

    monkeypatch.setattr(feature_cache, "_view", view)


def test_what_was_made_survives_a_lost_disk(cache, tmp_path, monkeypatch):
    expected = cache().views(range(9))
    emptied(tmp_path)
    monkeypatch.setattr(feature_cache, "_BATCH", 2)
    monkeypatch.setattr(feature_cache, "_KEPT_EVERY", 1)
    with monkeypatch.context() as patch:
        unreadable(patch, {7, 8})
        with pytest.raises(InputError, match="picture 7 is gone"):
            cache()
    read, seen = feature_cache._view, []

    def counted(recipe, row, view):
        seen.append(row)
        return read(recipe, row, view)

    monkeypatch.setattr(feature_cache, "_view", counted)
    np.testing.assert_allclose(cache().views(range(9)), expected, rtol=1e-2, atol=1e-3)
    assert set(seen) == {6, 7, 8}


def test_what_could_not_be_read_is_tried_again(cache, tmp_path, monkeypatch):
    expected = cache().views(range(9))
    emptied(tmp_path)
    monkeypatch.setattr(feature_cache, "_BATCH", 2)
    monkeypatch.setattr(feature_cache, "_KEPT_EVERY", 1)
    with monkeypatch.context() as patch:
        unreadable(patch, {3})
        features = feature_cache._features

        def stopped(*args):
            if len(seen) == 6:
                raise KeyboardInterrupt
            seen.append(args)
            return features(*args)

        seen = []
        patch.setattr(feature_cache, "_features", stopped)
        with pytest.raises(KeyboardInterrupt):
            cache(max_share=0.2)
    np.testing.assert_allclose(cache().views(range(9)), expected, rtol=1e-2, atol=1e-3)


def test_what_a_finished_file_lacks_is_tried_again(cache, tmp_path, monkeypatch):
    expected = cache().views(range(9))
    emptied(tmp_path)
    with monkeypatch.context() as patch:
        unreadable(patch, {3})
        assert cache(max_share=0.2).is_broken(3)
    healed = cache(max_share=0.0)
    assert not healed.is_broken(3)
    np.testing.assert_allclose(healed.views(range(9)), expected, rtol=1e-2, atol=1e-3)


def test_a_cache_of_many_files_keeps_few_open(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_OPEN", 2)
    whole = cache()
    (name,) = files(tmp_path)
    parts = []
    for row in range(9):
        path = tmp_path / f"{row}.npy"
        np.save(path, np.load(tmp_path / "cache" / name)[[row]])
        parts.append((path, [8 - row]))
    split = feature_cache.FeatureCache(parts)
    rows = [*range(9), 4, 0]
    assert torch.equal(split.views([8 - row for row in rows]), whole.views(rows))
    assert split._open.cache_info().currsize == 2


def test_a_picture_that_lacks_one_view_is_broken_as_a_whole(cache, monkeypatch):
    unreadable(monkeypatch, {3}, views={1})
    made = cache(max_share=0.2)
    assert [row for row in range(9) if made.is_broken(row)] == [3]
    assert made.views([3]).isnan().all()
    assert made.views([0, 1, 2, 4, 5, 6, 7, 8]).isfinite().all()


def test_a_finished_cache_waits_for_nobody(cache, tmp_path):
    """Another process may be making another one, or be stuck."""
    made = cache()
    (name,) = files(tmp_path)
    lock = (tmp_path / "cache" / name).with_suffix(".lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        np.testing.assert_array_equal(cache().views(range(9)), made.views(range(9)))


def test_whoever_wants_the_same_cache_waits_and_says_so(cache, tmp_path, caplog):
    cache()
    (name,) = files(tmp_path)
    path = tmp_path / "cache" / name
    whole = path.read_bytes()
    path.unlink()
    with ThreadPoolExecutor() as pool, path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = pool.submit(cache)
        while "waiting for another process" not in caplog.text:
            assert not waiting.done()
            time.sleep(0.01)
        path.write_bytes(whole)
        path.with_suffix(".lock").unlink()
        fcntl.flock(file, fcntl.LOCK_UN)
        assert len(waiting.result(timeout=60)) == 9
    assert path.read_bytes() == whole


def test_cache_tells_what_could_not_be_embedded(photos, tower, preprocess, tmp_path, caplog):
    whole = read_examples([str(photos)])
    (photos / "05.png").write_bytes(b"no picture")

    def make(name, max_share):
        return cached_features(
            whole,
            tower,
            preprocess,
            TWO_VIEWS,
            folder=tmp_path / name,
            seed=0,
            max_broken_share=max_share,
        )

    with pytest.raises(InputError, match=r"1 of 9 pictures are broken.*over the 10\.0%"):
        make("a", 0.1)
    made = make("b", 0.12)
    assert [row for row in range(9) if made.is_broken(row)] == [5]
    assert made.get([0, 4, 6, 8], [1, 1, 0, 0]).isfinite().all()
    assert "features: 1 of 9 pictures left out (unsupported_format 1)" in caplog.text
    batches = PairBatches(
        whole,
        preprocess,
        TWO_VIEWS,
        batch_size=3,
        seed=0,
        feature_cache=made,
        max_broken_share=0.12,
    )
    made = list(batches.epoch(0))
    assert [len(batch.image) for batch in made] == [3, 3, 3]
    assert all(batch.image.isfinite().all() for batch in made)
    assert {row for batch in made for row in batch.image_id_B.tolist()} == {*range(9)} - {5}


def test_cache_is_for_pictures_only(photos, tower, preprocess, tmp_path):
    video = dataclasses.replace(read_examples([str(photos)])[0], kind="video")
    with pytest.raises(InputError, match="the data hold videos; set freeze_image to false"):
        cached_features([video], tower, preprocess, TWO_VIEWS, folder=tmp_path / "c", seed=0)


def test_batches_take_cached_views(cache, photos, preprocess):
    made = cache()
    batches = PairBatches(
        read_examples([str(photos)]),
        preprocess,
        TWO_VIEWS,
        batch_size=9,
        seed=0,
        feature_cache=made,
    )
    seen = set()
    for epoch in range(4):
        (batch,) = batches.epoch(epoch)
        for row, feature_D in zip(batch.image_id_B.tolist(), batch.image, strict=True):
            views = [v for v in (0, 1) if torch.equal(feature_D, made.get([row], [v])[0])]
            assert views
            if len(views) == 1:  # small crops of plain colours can look alike
                seen.update(views)
    assert seen == {0, 1}


def test_cache_is_another_when_a_picture_changes(cache, photos, tmp_path):
    before = cache().get([0], [0])
    first = read_examples([str(photos)])[0]
    Image.new("RGB", (40, 30), "purple").save(first.location.path)
    after = cache().get([0], [0])
    assert len(files(tmp_path)) == 2
    assert not torch.equal(before, after)


def test_cache_in_bf16_is_close(cache):
    exact, rounded = cache().get([0, 1], [0, 0]), cache(bf16=True).get([0, 1], [0, 0])
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.99


def test_features_that_overflow_are_refused(cache, tower, tmp_path):
    loud = copy.deepcopy(tower)
    with torch.no_grad():
        loud.trunk.bn2.weight.fill_(1e9)
        loud.trunk.bn2.bias.fill_(1e9)
        loud.trunk.bn2.act = torch.nn.Identity()
    with pytest.raises(InputError, match="do not fit float16"):
        cache(tower=loud)
    assert not any(name.endswith(".npy") for name in files(tmp_path))
