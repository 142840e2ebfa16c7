"""A run that is killed at any moment, as often as it happens, ends as if it never was."""

import json
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.training.engine.test_resume import RUN, assert_same_run, finish, start
from training.engine.run_log import LOG_FILE
from training.engine.states import STATES, StateFolder

BEGUN = """
from training.engine.run import Run
train_run = Run.train
def begun(self):
    print("begun", flush=True)
    train_run(self)
Run.train = begun
"""


def logged(folder: Path) -> list[dict]:
    """Every line without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return [{n: v for n, v in line.items() if not n.startswith("speed/")} for line in lines]


def kill_after(process: subprocess.Popen, delay_s: float) -> bool:
    """Kill a run so long after it begins; whether it was still running."""
    assert process.stdout.readline() == b"begun\n"
    time.sleep(delay_s)
    process.kill()
    process.communicate()
    return process.returncode != 0


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(configure, all_losses, shard, tmp_path):
    """In steps, while a state or a checkpoint is written, or while it is scored."""
    run = (
        *all_losses,
        "objective.filter.enabled=true",
        "optimiser.warmup_steps=2",
        "engine.save_every=3",
        f"data.evaluate=['{shard}']",
        "epochs=4",
    )
    whole, config = configure(*run, f"output={tmp_path / 'whole'}"), configure(*run)
    process = start(whole, run=BEGUN + RUN, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    began = time.monotonic()
    finish(process)
    whole_s = time.monotonic() - began
    rng, kills = random.Random(0), 0
    for _ in range(6):
        process = start(config, run=BEGUN + RUN, stdout=subprocess.PIPE)
        kills += kill_after(process, rng.uniform(0, 0.3 * whole_s))
    assert kills >= 4  # a run that has come to its end may end before
    assert StateFolder(config.output / STATES).steps()
    finish(start(config))
    assert_same_run(config.output, whole.output)
    assert logged(config.output) == logged(whole.output)
    scored = [line["epoch"] for line in logged(config.output) if "epoch" in line]
    assert scored == [0, 1, 2, 3]
    best = "best/model.safetensors"
    assert (config.output / best).read_bytes() == (whole.output / best).read_bytes()
