"""A run that is killed at any moment, as often as it happens, ends as if it never was."""

import json
import random
import signal
from pathlib import Path

import pytest

from tests.training.engine.forked import Forked
from tests.training.engine.test_resume import RUN, assert_same_run, finish, start
from training.config import TrainConfig
from training.engine.run_log import LOG_FILE
from training.engine.states import STATES, StateFolder

WATCHED = """
import os, signal, sys, threading
from training.engine.run_log import LOG_FILE, RunLog
main, write, armed = threading.get_ident(), RunLog._write, False

def called(*_):
    global CALLS
    CALLS -= 1
    if CALLS < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def counted():
    global FILES
    if FILES == 0:
        sys.setprofile(called)
    FILES -= 1

def audited(event, args):
    if armed and event in ("open", "os.mkdir", "os.rename", "os.remove"):
        if threading.get_ident() == main and str(args[0]).startswith(FOLDER):
            counted()

def written(self, place, figures):
    global armed
    write(self, place, figures)
    with open(os.path.join(FOLDER, LOG_FILE)) as file:
        enough = len(file.readlines()) >= LINES
    if enough and not armed:
        armed = True
        counted()

RunLog._write = written
sys.addaudithook(audited)
"""


def start_dying(config: TrainConfig, *, lines: int, files: int, calls: int) -> Forked:
    """A run that kills itself with SIGKILL at a place that no machine's speed changes.

    When its log has so many lines, and so many files were opened, renamed or removed after that,
    and so many functions called.
    """
    where = f"LINES, FILES, CALLS, FOLDER = {lines}, {files}, {calls}, {str(config.output)!r}\n"
    return start(config, run=where + WATCHED + RUN)


def is_killed(process: Forked) -> bool:
    """Whether that is how it ends."""
    try:
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode == -signal.SIGKILL


def logged(folder: Path) -> list[dict]:
    """Every line without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return [{n: v for n, v in line.items() if not n.startswith("speed/")} for line in lines]


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(configure, all_losses, shard, tmp_path):
    """In steps, and while a batch is read or a state or a checkpoint is written."""
    run = (
        *all_losses,
        "objective.filter.enabled=true",
        "optimiser.warmup_steps=2",
        "engine.save_every=3",
        f"data.evaluate=['{shard}']",
        "epochs=4",
    )
    whole, config = configure(*run, f"output={tmp_path / 'whole'}"), configure(*run)
    finish(start(whole))
    rng = random.Random(1)
    places = [(4, 16, 500)]  # the first checkpoint is written
    for lines in sorted(rng.sample(range(5, 15), 5)):  # of 20: none is after the end
        places.append((lines, rng.randrange(24), rng.randrange(3000)))
    for lines, files, calls in places:
        dying = start_dying(config, lines=lines, files=files, calls=calls)
        assert is_killed(dying), (lines, files, calls)
    assert StateFolder(config.output / STATES).steps()
    finish(start(config))
    assert_same_run(config.output, whole.output)
    assert logged(config.output) == logged(whole.output)
    scored = [line["epoch"] for line in logged(config.output) if "epoch" in line]
    assert scored == [0, 1, 2, 3]
    best = "best/model.safetensors"
    assert (config.output / best).read_bytes() == (whole.output / best).read_bytes()
