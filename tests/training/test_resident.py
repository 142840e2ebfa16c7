"""Pictures that stay on the device: the same crops, from the kept picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.config import PreprocessConfig
from cots_model.errors import ConfigError, InputError
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer
from training.batches import PairBatches
from training.config import AugmentConfig
from training.data import read_examples
from training.resident import KeptPictures, ResidentPictures, View

CPU = torch.device("cpu")
WHOLE = (0.0, 0.0, 1.0, 1.0)


def plain(side: int, resize: str = "squash") -> Preprocess:
    config = PreprocessConfig(
        image_size=side, resize=resize, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    return Preprocess(config, make_tokenizer())


@pytest.fixture
def smooth(tmp_path):
    """Four smooth pictures of several sizes, and their examples."""
    rng = np.random.default_rng(0)
    imgs = []
    for number, size in enumerate([(64, 64), (96, 48), (40, 70), (128, 90)]):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        imgs.append(coarse.resize(size, Image.Resampling.BICUBIC))
        imgs[-1].save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    return imgs, read_examples([str(tmp_path)])


@pytest.fixture
def load(tmp_path):
    def load(examples, preprocess, side, **options) -> ResidentPictures:
        return ResidentPictures.load(
            examples, preprocess, side=side, device=CPU, folder=tmp_path / "cache", **options
        )

    return load


def view(*views: View) -> torch.Tensor:
    return torch.tensor(views, dtype=torch.float64)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_whole_pictures_of_the_kept_side_are_what_the_model_sees(load, smooth, num_workers):
    imgs, examples = smooth
    preprocess = plain(32)
    kept = load(examples, preprocess, 32, num_workers=num_workers)
    img_BCHW = kept.views(view(*(View(row, *WHOLE, 0) for row in range(4))))
    torch.testing.assert_close(img_BCHW, preprocess.images(imgs), atol=1e-5, rtol=0)


def test_a_mirrored_view_is_mirrored(load, smooth):
    kept = load(smooth[1], plain(32), 32)
    straight, mirrored = kept.views(view(View(1, *WHOLE, 0), View(1, *WHOLE, 1)))
    torch.testing.assert_close(mirrored, straight.flip(-1), atol=1e-5, rtol=0)


def test_a_box_is_that_part_of_the_picture(load, smooth):
    """Close to Pillow's crop and bicubic resize, whose kernel is a little softer."""
    imgs, examples = smooth
    kept = load(examples, plain(32), 64)
    (ours,) = kept.views(view(View(0, 0.25, 0.125, 0.5, 0.75, 0)))
    crop = imgs[0].crop((16, 8, 48, 56))
    assert (ours - plain(32).image(crop)).abs().max() < 0.03
    assert (ours - plain(32).image(imgs[0])).abs().max() > 0.1  # the whole is something else


def test_smaller_views_are_averaged_not_skipped():
    """Stripes of one pixel come to grey, as with Pillow."""
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    kept = ResidentPictures(stripes, KeptPictures(frozenset()), plain(16))
    (ours,) = kept.views(view(View(0, *WHOLE, 0)))
    assert (ours - 0.5).abs().max() < 0.1


def test_draws_keep_to_the_picture_and_to_the_share_of_its_area():
    augment, rng = AugmentConfig(min_area=0.4), np.random.default_rng(0)
    drawn = [View.draw(7, augment, rng) for _ in range(500)]
    areas = [one.width * one.height for one in drawn]
    assert min(areas) > 0.4 - 1e-9
    assert max(areas) > 0.95
    assert all(one.left >= 0 and one.left + one.width <= 1 + 1e-9 for one in drawn)
    assert all(one.top >= 0 and one.top + one.height <= 1 + 1e-9 for one in drawn)
    assert 200 < sum(one.mirrored for one in drawn) < 300
    assert max(one.width / one.height for one in drawn) <= 4 / 3 + 1e-9


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_the_same_pairs_and_a_broken_picture_is_replaced(
    load, smooth, tmp_path, num_workers
):
    (tmp_path / "2.png").write_bytes(b"no picture")
    _, examples = smooth
    kept = load(examples, plain(32), 32, max_broken_share=0.5)
    still = AugmentConfig(min_area=1.0, flip=False)
    options = {"batch_size": 4, "seed": 0, "max_broken_share": 0.5}
    (theirs,) = PairBatches(examples, plain(32), still, **options).epoch(0)
    made = PairBatches(
        examples, plain(32), still, resident=kept, num_workers=num_workers, **options
    )
    (ours,) = made.epoch(0)
    assert ours.image_id_B.tolist() == theirs.image_id_B.tolist()
    assert 2 not in ours.image_id_B
    assert torch.equal(ours.tok_BL, theirs.tok_BL)
    torch.testing.assert_close(ours.to(CPU).image, theirs.to(CPU).image, atol=1e-5, rtol=0)


def test_what_cannot_be_kept_is_refused(load, smooth, tmp_path):
    with pytest.raises(ConfigError, match=r"resized by 'crop'; leave data\.resident_side out"):
        load(smooth[1], plain(32, "crop"), 32)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="1 of 4 pictures are broken"):
        load(smooth[1], plain(32), 32)
    with pytest.raises(InputError, match=r"GiB, and cpu has no room.*lower data\.resident_side"):
        load(smooth[1] * 10**6, plain(32), 50_000)


def test_a_run_on_resident_pictures_can_be_repeated(configure, tmp_path):
    """The same weights again, and not those of pictures that are decoded anew."""
    from training.trainer import train

    both = ("epochs=2", "batch_size=8")
    sides = {"a": "data.resident_side=32", "b": "data.resident_side=32", "c": "data.num_frames=2"}
    found = [
        train(configure(*both, side, f"output={tmp_path / name}")).fingerprint
        for name, side in sides.items()
    ]
    assert found[0] == found[1] != found[2]


def test_resident_pictures_of_a_frozen_tower_are_refused(configure):
    with pytest.raises(ConfigError, match=r"data\.resident_side keeps the pictures"):
        configure("data.resident_side=32", "freeze_image=true")
