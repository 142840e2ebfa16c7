"""Batches: every picture once an epoch, from the seed alone."""

import pytest
import torch

from cots_model.errors import InputError
from training.batches import PairBatches
from training.config import AugmentConfig

STILL = AugmentConfig(min_area=1.0, flip=False)


@pytest.fixture
def batches(examples, preprocess):
    def make(batch_size: int = 5, seed: int = 0, augment: AugmentConfig = STILL) -> PairBatches:
        return PairBatches(examples, preprocess, augment, batch_size=batch_size, seed=seed)

    return make


def rows_of(epoch) -> list[int]:
    return [row for batch in epoch for row in batch.image_id_B.tolist()]


def contents(epoch) -> list[torch.Tensor]:
    return [t for batch in epoch for t in vars(batch).values() if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("batch_size", [1, 5, 8, 32])
def test_an_epoch_has_every_picture_once_but_a_short_last_batch(batches, batch_size):
    made = batches(batch_size)
    sizes = [len(batch.image_id_B) for batch in made.epoch(0)]
    assert sizes == [batch_size] * len(made)
    assert len(made) == 32 // batch_size
    rows = rows_of(made.epoch(0))
    assert len(set(rows)) == len(rows) == 32 - 32 % batch_size


def test_what_is_dropped_changes_with_the_epoch(batches):
    dropped = {frozenset(range(32)) - set(rows_of(batches(5).epoch(n))) for n in range(6)}
    assert len(dropped) > 1


@pytest.mark.parametrize("augment", [STILL, AugmentConfig(min_area=0.3)])
def test_equal_seeds_give_equal_batches(batches, augment):
    first, second = (contents(batches(augment=augment).epoch(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_other_epochs_and_seeds_give_other_batches(batches):
    orders = [rows_of(batches(seed=s).epoch(n)) for s, n in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4


def test_pairs_stay_together(batches, examples, preprocess):
    for batch in batches(8).epoch(0):
        for row, image, tok_L, mask_L in zip(
            batch.image_id_B.tolist(), batch.image, batch.tok_BL, batch.mask_BL, strict=True
        ):
            ids = [preprocess.text([c])[0][0].tolist() for c in examples[row].captions]
            assert tok_L[mask_L].tolist() in ids
            assert torch.equal(image, preprocess.image(examples[row].picture()))


def test_every_caption_has_its_turn(batches, examples, preprocess):
    seen = {
        tuple(tok_L[mask_L].tolist())
        for epoch in range(12)
        for batch in batches(8).epoch(epoch)
        for tok_L, mask_L in zip(batch.tok_BL, batch.mask_BL, strict=True)
    }
    assert len(seen) == len({caption for e in examples for caption in e.captions}) == 64


def test_flip_mirrors_about_half_and_changes_nothing_else(batches, examples, preprocess):
    """Top and bottom differ in every picture, so that a mirrored one equals itself."""
    augment = AugmentConfig(min_area=1.0, flip=True)
    for batch in batches(8, augment=augment).epoch(0):
        for row, image in zip(batch.image_id_B.tolist(), batch.image, strict=True):
            assert torch.equal(image, preprocess.image(examples[row].picture()))


def test_flip_is_along_the_width(preprocess, tmp_path):
    from PIL import Image

    from training.data import read_examples

    for number in range(40):
        img = Image.new("RGB", (32, 32), "white")
        img.paste("black", (0, 0, 16, 32))
        img.save(tmp_path / f"{number:02d}.png")
        (tmp_path / f"{number:02d}.txt").write_text("half")
    made = PairBatches(
        read_examples([str(tmp_path)]),
        preprocess,
        AugmentConfig(min_area=1.0, flip=True),
        batch_size=40,
        seed=0,
    )
    (batch,) = made.epoch(0)
    left_B, right_B = batch.image[..., :16].mean((1, 2, 3)), batch.image[..., 16:]
    mirrored_B = left_B > right_B.mean((1, 2, 3))
    assert 8 <= int(mirrored_B.sum()) <= 32


def test_too_few_pictures_are_refused(batches):
    with pytest.raises(InputError, match="32 pictures do not fill one batch of 33; lower"):
        batches(33)
