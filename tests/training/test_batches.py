"""Batches: every picture once an epoch, from the seed alone."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from cots_model.errors import CotsError, InputError
from index_builder.content import Location
from tests.conftest import REPOSITORY
from training.batches import PairBatches
from training.config import AugmentConfig
from training.example import Example
from training.loader import prepare_all
from training.orders import ShardOrder

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
            batch.image_id_B.tolist(),
            preprocess.normalise(batch.image),
            batch.tok_BL,
            batch.mask_BL,
            strict=True,
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
        for row, image in zip(
            batch.image_id_B.tolist(), preprocess.normalise(batch.image), strict=True
        ):
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
    image = batch.image.float()
    left_B, right_B = (half.mean((1, 2, 3)) for half in (image[..., :16], image[..., 16:]))
    mirrored_B = left_B > right_B
    assert 8 <= int(mirrored_B.sum()) <= 32


def test_too_few_pictures_are_refused(batches):
    with pytest.raises(InputError, match="32 pictures do not fill one batch of 33; lower"):
        batches(33)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(examples, preprocess, num_workers):
    def epoch(num_workers):
        made = PairBatches(
            examples,
            preprocess,
            AugmentConfig(min_area=0.3),
            batch_size=5,
            seed=0,
            num_workers=num_workers,
        )
        state = torch.random.get_rng_state()
        found = [(contents([batch]), made.state) for batch in made.epoch(1)]
        assert torch.equal(torch.random.get_rng_state(), state)
        return found

    for (here, state), (there, other) in zip(epoch(0), epoch(num_workers), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
        assert state == other


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_goes_on_behind_any_batch(examples, preprocess, num_workers):
    def make():
        return PairBatches(
            examples, preprocess, STILL, batch_size=5, seed=0, num_workers=num_workers
        )

    made, kept = make(), []
    for batch in made.epoch(2):
        kept.append((batch, made.state))
    state = json.loads(json.dumps(kept[3][1]))
    rest = list(make().epoch(2, state))
    assert len(rest) == len(kept) - 4
    for got, (batch, _) in zip(rest, kept[4:], strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(contents([got]), contents([batch]), strict=True)
        )


def test_a_stream_of_shards_makes_batches(shard, preprocess):
    order = ShardOrder([str(shard)], block_size=10)
    made = PairBatches(order, preprocess, STILL, batch_size=8, seed=0)
    assert (len(made), made.num_pairs) == (4, 32)
    assert len(set(rows_of(made.epoch(0)))) == 32


def test_videos_keep_their_frames_together(examples, preprocess, tmp_path):
    from tests.cots_model.test_videos import write_clip

    for count in (3, 40):
        write_clip(tmp_path / f"{count}.mp4", count)
    clips = [
        Example(f"{count}", Location(str(tmp_path / f"{count}.mp4")), ("a clip",), "video")
        for count in (3, 40)
    ]
    made = PairBatches([*clips, examples[0]], preprocess, AugmentConfig(), batch_size=3, seed=0)
    (batch,) = made.epoch(0)
    assert dict(zip(batch.image_id_B.tolist(), batch.num_frames_B, strict=True)) == {
        0: 3,
        1: 16,
        2: 1,
    }
    assert batch.image.shape == (20, 3, 32, 32)
    assert batch.to(torch.device("cpu")).num_frames_B == batch.num_frames_B
    made = PairBatches(clips[1:], preprocess, AugmentConfig(), batch_size=1, seed=0, num_frames=4)
    assert [batch.num_frames_B for batch in made.epoch(0)] == [(4,)]


class Dies:
    """Stands for a decoder that takes its process with it."""

    def __call__(self, step):
        os._exit(3)


def test_a_dead_worker_is_an_error_that_says_so():
    with pytest.raises(CotsError, match=r"a loading process ended .*lower data\.num_workers"):
        list(prepare_all(Dies(), iter([1, 2]), num_workers=1))


class Handler:
    """How a loading process takes a signal."""

    def __call__(self, number):
        return signal.getsignal(number)


def test_workers_leave_it_to_the_main_process_to_end():
    """Ctrl-C reaches the whole group; the step that goes on still needs them."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    assert list(prepare_all(Handler(), iter(numbers), num_workers=1)) == [signal.SIG_IGN] * 2


class Fails:
    def __call__(self, step):
        raise RuntimeError(f"stack expects equal sizes at {step}")


def test_a_fault_in_a_worker_is_not_taken_for_its_end():
    with pytest.raises(RuntimeError, match="stack expects equal sizes at 1"):
        list(prepare_all(Fails(), iter([1, 2]), num_workers=1))


class Refuses:
    def __call__(self, step):
        raise InputError(f"step {step} is bad")


def test_an_error_of_a_worker_comes_as_it_was():
    with pytest.raises(InputError) as caught:
        list(prepare_all(Refuses(), iter([1, 2]), num_workers=1))
    assert str(caught.value) == "step 1 is bad"


def test_an_error_that_is_kept_keeps_no_worker():
    before = set(multiprocessing.active_children())
    with pytest.raises(RuntimeError) as caught:
        list(prepare_all(Fails(), iter([1, 2]), num_workers=1))
    left = set(multiprocessing.active_children()) - before
    for worker in left:
        worker.join(20)
    assert not [worker for worker in left if worker.is_alive()]
    assert caught.traceback  # it holds the loader until here


ABANDONED = """
from tests.training.test_batches import Handler
from training.loader import prepare_all

if __name__ == "__main__":
    kept = prepare_all(Handler(), iter([1, 2, 3, 4, 5, 6]), num_workers=1)
    print(next(kept))
"""


def test_a_process_ends_with_a_loader_that_was_read_in_part(tmp_path):
    """Its workers ignore SIGTERM, by which multiprocessing ends what is left, and then waits."""
    script = tmp_path / "abandoned.py"
    script.write_text(ABANDONED)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
