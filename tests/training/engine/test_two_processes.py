"""Two processes do what one does with the doubled batch."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.training.engine.forked import Forked
from training.engine.run_log import LOG_FILE
from training.engine.states import STATES, StateFolder

RUN = """
import sys
from pathlib import Path
from training.config import load_train_config
from training.trainer import train
try:
    train(load_train_config(Path(sys.argv[1])))
finally:
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    print("threads left:", sum(name.startswith("pt_gloo") for name in names), file=sys.stderr)
"""
WITHOUT_A_COMPILER = """
from training.engine import blocks
blocks.COMPILER = "aot_eager"
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_all(code: str, path: Path, size: int) -> list[Forked]:
    """Start the processes of a run as torchrun does."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared["OMP_NUM_THREADS"] = "1"
    return [
        Forked(code, [str(path)], shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]


def launch(path: Path, size: int, run: str, *, status: int = 0) -> list[str]:
    """Start the processes, and wait until they end by themselves; what they say.

    A gloo thread that outlives the run may abort the process while it shuts down. Of FSDP, torch
    keeps the two threads of the default group.
    """
    processes = start_all(run, path, size)
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [status] * size, "\n".join(errors)
    if sys.platform == "linux":
        left = 2 if "parallel: fsdp" in path.read_text() and size > 1 else 0
        counted = re.findall(r"threads left: (\d+)", "\n".join(errors))
        assert counted in ([], [str(left)] * size), "\n".join(errors)
    return errors


def weights_after(path: Path, config, size: int, *, run: str = RUN) -> dict[str, torch.Tensor]:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    launch(path, size, run)
    _, state = StateFolder(config.output / STATES).load_latest()
    assert state["stepper"]["step"] == 4 * config.epochs
    return state["stepper"]["objective"] | state["stepper"]["queues"]


LOGGED = ("loss/", "accuracy/", "filter/", "optimiser/")


def assert_same_figures(ours: Path, theirs: Path) -> None:
    """Of every step: AdamW hides by which factor gradients are wrong, their norm does not."""
    logs = [
        [
            {name: value for name, value in json.loads(line).items() if name.startswith(LOGGED)}
            for line in (folder / LOG_FILE).read_text().splitlines()
        ]
        for folder in (ours, theirs)
    ]
    assert len(logs[0]) == len(logs[1]) > 0
    for step, (our, their) in enumerate(zip(*logs, strict=True)):
        assert our == pytest.approx(their, rel=1e-3, abs=1e-4), step


def assert_two_equal_one(configure, tmp_path: Path, *shared: str, run: str = RUN) -> Path:
    """Weights and figures of two processes, and of one with the doubled batch; the two's output.

    Tolerance: sums in another order.
    """
    one = configure(*shared, "batch_size=8", f"output={tmp_path / 'one'}")
    two = configure(*shared, "batch_size=4", f"output={tmp_path / 'two'}")
    expected = weights_after(tmp_path / "one.yaml", one, 1, run=run)
    ours = weights_after(tmp_path / "two.yaml", two, 2, run=run)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=2e-5, msg=name)
    assert_same_figures(two.output, one.output)
    return two.output


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("filtered", ["true", "false"])
def test_two_processes_equal_one_with_the_doubled_batch(
    configure, exact_yaml, all_losses, tmp_path, parallel, filtered
):
    """The queue of 12 is no multiple of the batch of 8; tolerance: sums in another order."""
    shared = (
        *all_losses,
        f"model={exact_yaml}",
        f"objective.filter.enabled={filtered}",
        "objective.filter.num_sigmas=0.5",
        "epochs=5",
        "optimiser.lr=1e-4",
    )
    assert_two_equal_one(configure, tmp_path, *shared, f"engine.parallel={parallel}")


@pytest.mark.slow
def test_two_processes_on_resident_pictures_equal_one(configure, exact_yaml, tmp_path):
    """Each keeps all pictures, and crops those of its own pairs."""
    shared = (f"model={exact_yaml}", "data.resident_side=48", "epochs=3", "optimiser.lr=1e-4")
    assert_two_equal_one(configure, tmp_path, *shared)


@pytest.mark.slow
def test_torchrun_starts_the_command(configure, tmp_path):
    """As the documentation has it; the other processes here are forked, see `Forked`."""
    config, path = configure("batch_size=4", "epochs=1"), tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    module = ["-m", "cots_cli.main", "train", "pretrain", "--config", str(path)]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, *module]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = (config.output / LOG_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]  # by one of them
    assert (config.output / "model.safetensors").is_file()


STOPPED = """
import os, signal
from training.engine.stepper import Stepper
run = Stepper.run
def stopped(self, batches):
    if self.step == 6 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return run(self, batches)
Stepper.run = stopped
"""


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_that_were_stopped_go_on_exactly(configure, tmp_path, parallel):
    """One is asked to end, both do; dropout and hidden words have their seeds."""
    run = (
        "objective.language.weight=1",
        "objective.filter.enabled=true",
        "epochs=3",
        "batch_size=4",
        f"engine.parallel={parallel}",
    )
    whole = weights_after(tmp_path / "a.yaml", configure(*run, f"output={tmp_path / 'a'}"), 2)
    config, path = configure(*run, f"output={tmp_path / 'b'}"), tmp_path / "b.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    for error in launch(path, 2, STOPPED + RUN, status=1):
        assert "stopped after step 6; run the same command" in error
    assert StateFolder(config.output / STATES).steps()[0] == 7
    resumed = weights_after(path, config, 2)
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.slow
def test_processes_that_see_different_states_say_so(configure, tmp_path):
    """Two machines with a folder of their own each: only the first wrote a state."""
    own = "import os\nos.chdir(f'{sys.argv[1]}-{os.environ[\"RANK\"]}')\n"
    run = RUN.replace("try:\n", f"{own}try:\n")
    config, path = configure("epochs=2", "batch_size=4"), tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json") | {"output": "run"}))
    for rank in (0, 1):
        (tmp_path / f"run.yaml-{rank}").mkdir()
    launch(path, 2, STOPPED + run, status=1)
    for error in launch(path, 2, run, status=1):
        assert "different saved states in run/states (at steps 7, None)" in error


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_recomputed_and_compiled_blocks_are_split_and_copied(
    configure, exact_yaml, tmp_path, parallel
):
    shared = (f"model={exact_yaml}", "objective.task.weight=1", "epochs=1", "optimiser.lr=1e-4")
    one = configure(*shared, "batch_size=8", f"output={tmp_path / 'one'}")
    two = configure(
        *shared,
        "batch_size=4",
        "engine.activation_checkpointing=true",
        "engine.compile=true",
        f"engine.parallel={parallel}",
        f"output={tmp_path / 'two'}",
    )
    expected = weights_after(tmp_path / "one.yaml", one, 1)
    ours = weights_after(tmp_path / "two.yaml", two, 2, run=WITHOUT_A_COMPILER + RUN)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_projections_of_frozen_towers_are_trained_alike(configure, exact_yaml, tmp_path, parallel):
    shared = (
        f"model={exact_yaml}",
        "freeze_image=true",
        "freeze_text=true",
        "regression={when: both, share: 0.5}",
        "epochs=2",
        "optimiser.lr=1e-4",
    )
    one = configure(*shared, "batch_size=8", f"output={tmp_path / 'one'}")
    two = configure(
        *shared, "batch_size=4", f"engine.parallel={parallel}", f"output={tmp_path / 'two'}"
    )
    expected = weights_after(tmp_path / "one.yaml", one, 1)
    ours = weights_after(tmp_path / "two.yaml", two, 2)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.slow
def test_accumulated_batches_equal_a_larger_one(configure, exact_yaml, all_losses, tmp_path):
    shared = (
        *all_losses,
        f"model={exact_yaml}",
        "objective.filter.enabled=true",
        "objective.filter.num_sigmas=0.5",
        "epochs=5",
        "optimiser.lr=1e-4",
    )
    one = configure(*shared, "batch_size=8", f"output={tmp_path / 'one'}")
    two = configure(*shared, "batch_size=4", "accumulate=2", f"output={tmp_path / 'two'}")
    expected = weights_after(tmp_path / "one.yaml", one, 1)
    ours = weights_after(tmp_path / "two.yaml", two, 1)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=2e-5, msg=name)
    assert_same_figures(two.output, one.output)


SECOND_HALF_DROPPED = """
import dataclasses, os
from training.filter import AdaptiveMomentumFilter
judge = AdaptiveMomentumFilter.__call__
def dropping(self, image_key_BE, text_key_BE, queues, *, step):
    judged = judge(self, image_key_BE, text_key_BE, queues, step=step)
    keep_B = judged.keep_B.clone()
    if judged.active and os.environ["WORLD_SIZE"] == "2":
        keep_B &= os.environ["RANK"] == "0"
    elif judged.active:
        keep_B[len(keep_B) // 2:] = False
    return dataclasses.replace(judged, keep_B=keep_B)
AdaptiveMomentumFilter.__call__ = dropping
"""


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_process_without_kept_pairs_waits_for_the_other(
    configure, exact_yaml, all_losses, tmp_path, parallel
):
    """The first keeps all: each step ends on both, as that of one process which drops a half."""
    shared = (
        *all_losses,
        f"model={exact_yaml}",
        "objective.filter={enabled: true, num_sigmas: 50}",
        "epochs=3",
        "optimiser.lr=1e-4",
    )
    shared = (*shared, f"engine.parallel={parallel}")
    output = assert_two_equal_one(configure, tmp_path, *shared, run=SECOND_HALF_DROPPED + RUN)
    last = json.loads((output / LOG_FILE).read_text().splitlines()[-1])
    assert last["filter/kept"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_nothing_kept_anywhere_is_no_end(configure, exact_yaml, all_losses, tmp_path, parallel):
    """Minus fifty deviations keep nothing: every step still ends, on every process."""
    config = configure(
        *all_losses,
        f"model={exact_yaml}",
        "objective.filter={enabled: true, num_sigmas: -50}",
        f"engine.parallel={parallel}",
        "batch_size=4",
        "epochs=2",
    )
    weights = weights_after(tmp_path / "run.yaml", config, 2)
    assert all(torch.isfinite(value).all() for value in weights.values())
