"""Broken pictures: counted, listed up to a bound, and too many of them an error."""

import logging

import pytest

from cots_model.errors import InputError
from tests.training.conftest import write_folder
from training.batches import PairBatches
from training.broken import BrokenCount
from training.config import AugmentConfig
from training.data import read_examples
from training.example import BrokenExampleError


def errors(count: int, reason: str = "missing") -> list[BrokenExampleError]:
    return [BrokenExampleError(reason, f"picture {n}") for n in range(count)]


def test_reasons_are_counted_and_the_list_is_bounded(caplog):
    broken = BrokenCount(max_share=0.5, num_expected=100)
    broken.add(40, errors(15))
    broken.add(60, errors(15, "truncated"))
    broken.finish("epoch 3")
    assert broken.reasons == {"missing": 15, "truncated": 15}
    messages = [record.message for record in caplog.records]
    assert sum("left out (" in m and "picture" in m for m in messages[:-1]) == 20
    assert len(messages) == 22
    assert messages[-1] == "epoch 3: 30 of 100 pictures left out (missing 15, truncated 15)"


def test_too_many_end_the_pass_at_once():
    broken = BrokenCount(max_share=0.05, num_expected=100)
    broken.add(5, errors(5))
    with pytest.raises(
        InputError, match=r"6 of 100 pictures are broken, missing 6, over the 5\.0% .*: picture 0"
    ):
        broken.add(1, errors(1))


def test_a_pass_of_unknown_length_is_judged_by_at_least_1000():
    broken = BrokenCount(max_share=0.05)
    broken.add(50, errors(50))
    with pytest.raises(InputError, match="51 of 1,000"):
        broken.add(1, errors(1))
    broken = BrokenCount(max_share=0.05)
    broken.add(50, errors(10))
    with pytest.raises(InputError, match="10 of 50"):
        broken.finish("epoch 0")


def test_the_end_of_a_resumed_pass_is_judged_by_the_whole():
    broken = BrokenCount(max_share=0.05, num_expected=100)
    broken.add(4, errors(1))
    broken.finish("epoch 0")


def test_nothing_is_said_of_a_clean_pass(caplog):
    broken = BrokenCount(max_share=0.0)
    broken.add(10, [])
    broken.finish("epoch 0")
    assert caplog.records == []


@pytest.fixture
def photos(tmp_path):
    pairs = [(a, b) for a in ("red", "blue", "white", "black") for b in ("green", "gray", "pink")]
    folder = write_folder(tmp_path / "photos", pairs * 3)
    (folder / "04.png").write_bytes((folder / "04.png").read_bytes()[:60])
    examples = read_examples([str(folder)])
    (folder / "20.png").unlink()
    return examples


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_replaces_broken_pictures(photos, preprocess, caplog, num_workers):
    caplog.set_level(logging.WARNING)
    batches = PairBatches(
        photos,
        preprocess,
        AugmentConfig(),
        batch_size=6,
        seed=0,
        max_broken_share=0.1,
        num_workers=num_workers,
    )
    made = list(batches.epoch(0))
    assert [len(batch.image) for batch in made] == [6] * 6
    rows = [row for batch in made for row in batch.image_id_B.tolist()]
    assert set(rows) == set(range(36)) - {4, 20}
    for batch in made:
        again = {}
        for row, image in zip(batch.image_id_B.tolist(), batch.image, strict=True):
            assert (again.setdefault(row, image) == image).all()
    assert "left out (truncated): picture 04.png in" in caplog.text
    assert "left out (missing): picture 20.png in" in caplog.text
    assert "epoch 0: 2 of 36 pictures left out" in caplog.text


def test_more_than_the_share_stops_the_epoch(photos, preprocess):
    batches = PairBatches(photos, preprocess, AugmentConfig(), batch_size=6, seed=0)
    with pytest.raises(InputError, match=r"2 of 36 pictures are broken.*over the 5\.0%"):
        list(batches.epoch(0))


def test_a_step_without_any_good_picture_is_passed_over(photos, preprocess):
    batches = PairBatches(
        photos, preprocess, AugmentConfig(), batch_size=1, seed=0, max_broken_share=0.1
    )
    assert len(list(batches.epoch(0))) == 34
    batches = PairBatches(
        [photos[4]] * 2, preprocess, AugmentConfig(), batch_size=1, seed=0, max_broken_share=1,
        rank=1, world_size=2,
    )  # fmt: skip
    with pytest.raises(InputError, match="no picture of a step can be read"):
        list(batches.epoch(0))
