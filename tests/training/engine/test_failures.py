"""One process of two fails or is slow: the other stops with it, or waits, as long as it takes.

The faults are put in; what they meet is real. Both processes must end by themselves: nothing here
waits for a timeout of ten minutes.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.training.engine.forked import Forked
from tests.training.engine.test_two_processes import start_all
from training.engine.failed import FAILED
from training.engine.states import StateFolder

HEAD = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch
from cots_model.errors import InputError
from training.config import load_train_config
from training.engine import checkpoints, stepper, world
from training.trainer import train
from training.batches import PairBatches
from training.objective import Keys
from training.resident import ResidentPictures
rank = int(os.environ["RANK"])
"""
TAIL = """
train(load_train_config(Path(sys.argv[1])))
"""
NAN = """
keys_of = stepper.Stepper._keys
def broken(self, batch):
    keys = keys_of(self, batch)
    if rank == 1 and self.step == 2:
        return Keys(keys.image_BE * torch.nan, keys.text_BE)
    return keys
stepper.Stepper._keys = broken
"""
UNREADABLE = """
epoch = PairBatches.epoch
def broken(self, number, state=None):
    for place, batch in enumerate(epoch(self, number, state)):
        if rank == 1 and place == 2:
            raise InputError("the disk is gone")
        yield batch
PairBatches.epoch = broken
"""
NO_ROOM = """
load = ResidentPictures.load
def without_room(*args, **kwargs):
    if rank == 1:
        raise InputError("no room for them")
    return load(*args, **kwargs)
ResidentPictures.load = without_room
"""
UNSCORABLE = """
def broken(*args, **kwargs):
    raise InputError("nothing to score")
checkpoints.embed = broken
"""
SLOW = """
world.TIMEOUT = timedelta(seconds=20)
scored = checkpoints.embed
def slow(*args, **kwargs):
    time.sleep(25)
    return scored(*args, **kwargs)
checkpoints.embed = slow
"""


@dataclass(frozen=True)
class End:
    """How a process ended."""

    code: int
    error: str


@pytest.fixture
def ends(tmp_path):
    """Run two processes with a fault, and say how each ended."""

    def run(config, fault: str) -> tuple[End, ...]:
        path = tmp_path / "two.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        script = HEAD + fault + TAIL
        processes = start_all(script, path, 2)
        try:
            return tuple(_end(process) for process in processes)
        finally:
            for process in processes:
                process.kill()

    return run


def _end(process: Forked) -> End:
    error = process.communicate(timeout=280)[1]
    return End(process.returncode, error.strip().splitlines()[-1] if error.strip() else "")


@pytest.mark.slow
def test_a_similarity_that_is_not_finite_stops_all(ends, configure):
    config = configure("batch_size=4")
    main, other = ends(config, NAN)
    assert main.code == other.code == 1
    reason = "4 of 4 momentum similarities in the batch of step 2 are not finite"
    assert reason in other.error
    assert f"process 1 of 2 failed: {reason}" in main.error
    step, state = StateFolder(config.output / FAILED).load_latest()
    assert step == 2
    assert len(set(state["pictures"])) == 8  # of both
    assert all(name in end.error for name in state["pictures"] for end in (main, other))


@pytest.mark.slow
def test_data_that_one_cannot_read_stop_all(ends, configure):
    main, other = ends(configure("batch_size=4"), UNREADABLE)
    assert main.code == other.code == 1
    assert other.error.endswith("InputError: the disk is gone")
    assert main.error.endswith("TrainingError: process 1 of 2 failed: the disk is gone")


@pytest.mark.slow
def test_pictures_that_one_cannot_keep_stop_all(ends, configure):
    main, other = ends(configure("batch_size=4", "data.resident_side=32"), NO_ROOM)
    assert main.code == other.code == 1
    assert other.error.endswith("InputError: no room for them")
    assert main.error.endswith("TrainingError: process 1 of 2 failed: no room for them")


@pytest.mark.slow
def test_a_scoring_that_fails_stops_all(ends, configure, shard):
    main, other = ends(configure("batch_size=4", f"data.evaluate=['{shard}']"), UNSCORABLE)
    assert main.code == other.code == 1
    assert main.error.endswith("InputError: nothing to score")
    assert other.error.endswith("TrainingError: process 0 of 2 failed: nothing to score")


@pytest.mark.slow
def test_a_scoring_may_take_longer_than_a_step_ever_may(ends, configure, shard):
    config = configure("batch_size=4", "epochs=1", f"data.evaluate=['{shard}']")
    main, other = ends(config, SLOW)
    assert (main.code, other.code) == (0, 0), (main, other)
    assert Path(config.output / "model.safetensors").is_file()
