"""A run that is stopped, at any step and in any way, ends with the same weights."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import BertConfig, BertModel

from cots_model.errors import ConfigError, CotsError
from tests.training.conftest import PAIRS, assert_equal_nested, write_folder
from tests.training.engine.forked import Forked
from training.batches import PairBatches
from training.config import TrainConfig
from training.engine import checkpoints
from training.engine.run_files import FILES
from training.engine.states import STATES, StateFolder
from training.engine.stepper import Stepper
from training.engine.stopping import StoppedError
from training.trainer import train

RUN = """
import sys
from pathlib import Path
from training.config import load_train_config
from training.trainer import train
train(load_train_config(Path(sys.argv[1])))
"""
SLOW = """
import time
from training.engine.stepper import Stepper
step = Stepper.run
Stepper.run = lambda self, batches: (time.sleep(0.3), step(self, batches))[1]
"""
FULL = (
    "objective.task.weight=1",
    "objective.language.weight=1",
    "objective.filter.enabled=true",
    "optimiser.warmup_steps=2",
    "engine.save_every=1",
    "epochs=4",
)


@pytest.fixture(scope="module")
def trained(configure_in, tmp_path_factory) -> Path:
    """The run that nothing stopped."""
    config = configure_in(tmp_path_factory.mktemp("trained"), *FULL)
    train(config)
    return config.output


@pytest.fixture
def whole(configure, trained, tmp_path) -> TrainConfig:
    """The same, in the folder of the test."""
    config = configure(*FULL, f"output={tmp_path / 'whole'}")
    shutil.copytree(trained, config.output)
    return config


def last_state(folder: Path) -> dict:
    return StateFolder(folder / STATES).load_latest()[1]


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert_equal_nested(last_state(ours), last_state(theirs))
    names = ("model.safetensors", "config.json")
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)


def stop_at(monkeypatch, step: int) -> None:
    """As if SIGTERM came while that step was computed."""
    run = Stepper.run

    def stopped(self, batches):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, batches)

    monkeypatch.setattr(Stepper, "run", stopped)


@pytest.mark.parametrize("step", [0, 3, 4, 10])
def test_stopped_by_sigterm_it_goes_on_exactly(configure, whole, monkeypatch, step):
    config = configure(*FULL, "engine.save_every=1000")
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(StoppedError, match=f"stopped after step {step}; run the same command"):
            train(config)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finish(start(config))
    assert_same_run(config.output, whole.output)


def test_a_run_on_resident_pictures_goes_on_exactly(configure, tmp_path, monkeypatch):
    """In the midst of an epoch; their crops are drawn as those of decoded pictures."""
    run = (*FULL, "data.resident_side=48")
    whole = configure(*run, f"output={tmp_path / 'whole'}")
    train(whole)
    config = configure(*run)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(StoppedError):
            train(config)
    train(config)
    assert_same_run(config.output, whole.output)


def start(config: TrainConfig, *, run: str = RUN, start_new_session: bool = False) -> Forked:
    """The run in a process of its own."""
    path = config.output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return Forked(run, [str(path)], start_new_session=start_new_session)


def finish(process: Forked) -> None:
    try:
        _, err = process.communicate(timeout=250)
    finally:
        process.kill()
    assert process.returncode == 0, err


def test_a_damaged_state_is_not_the_end(configure, whole, monkeypatch):
    config = configure(*FULL)
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(StoppedError):
            train(config)
    newest = max((config.output / STATES).glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    train(config)
    assert_same_run(config.output, whole.output)


def test_another_order_of_pixels_is_said(configure, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(StoppedError):
            train(configure(*FULL))
    train(configure(*FULL, "engine.channels_last=true"))
    assert "rounded otherwise: engine.channels_last False -> True" in caplog.text


def test_another_number_of_threads_is_said(configure, monkeypatch, caplog):
    config = configure(*FULL)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(StoppedError):
            train(config)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        train(config)
    finally:
        torch.set_num_threads(threads)
    assert f"sums are rounded otherwise: threads {threads} -> {threads + 1}" in caplog.text


def test_other_values_are_refused(configure, whole):
    output = f"output={whole.output}"
    with pytest.raises(ConfigError, match=r"other values \(batch_size 8 -> 4\); give another"):
        train(configure(*FULL, output, "batch_size=4"))
    with pytest.raises(ConfigError, match=r"other values \(data\.num_frames 16 -> 4\)"):
        train(configure(*FULL, output, "data.num_frames=4"))
    path = whole.output / "run.yaml"
    path.write_text(path.read_text() + "shuffle: backwards\n")
    with pytest.raises(ConfigError, match=r"shuffle 'backwards' -> None"):
        train(whole)


def test_other_captions_are_refused(configure, tmp_path, monkeypatch):
    """The pictures' names and places are the same."""
    write_folder(tmp_path / "photos", PAIRS)
    run = (*FULL, f"data.train=['{tmp_path / 'photos'}']")
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(StoppedError):
            train(configure(*run))
    (tmp_path / "photos/07.txt").write_text("something else")
    with pytest.raises(ConfigError, match="stopped with other data; give another output"):
        train(configure(*run))


def test_other_frozen_weights_are_refused(configure, bert, tmp_path, monkeypatch):
    """They are read again, and cached features would be of another tower than the saved one."""
    folder = tmp_path / "text"
    shutil.copytree(bert, folder)
    run = ("freeze_image=true", "freeze_text=true", f"init.text={folder}")
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(StoppedError):
            train(configure(*run))
    torch.manual_seed(9)
    BertModel(BertConfig.from_pretrained(bert)).save_pretrained(folder)
    with pytest.raises(ConfigError, match="other weights of a frozen tower"):
        train(configure(*run))


def test_a_run_of_an_earlier_version_goes_on(configure, whole, monkeypatch):
    """Keys that came later have defaults that keep what was."""
    config = configure(*FULL)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(StoppedError):
            train(config)
    path = config.output / "run.yaml"
    values = yaml.safe_load(path.read_text())
    del values["freeze_text"], values["regression"]["share"]
    path.write_text(yaml.safe_dump(values))
    train(config)
    assert_same_run(config.output, whole.output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_stops_it_with_its_loading_processes(
    configure, whole, tmp_path, number
):
    """As Ctrl-C in a terminal, or a cluster's scheduler, sends it."""
    config = configure(*FULL, "data.num_workers=2", "engine.save_every=1000")
    process = start(config, run=SLOW + RUN, start_new_session=True)
    log = config.output / "log.jsonl"
    while not (log.is_file() and log.read_text().count("\n") >= 2):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert "run the same command to go on" in errors, errors
    assert StateFolder(config.output / STATES).steps()
    train(configure(*FULL))
    assert_same_run(config.output, whole.output)


def test_a_loading_process_that_a_stop_ended_is_no_failure(configure, whole, monkeypatch):
    def ended(self, number, state=None):
        os.kill(os.getpid(), signal.SIGTERM)
        raise CotsError("a loading process ended")
        yield

    config = configure(*FULL)
    with monkeypatch.context() as patch:
        patch.setattr(PairBatches, "epoch", ended)
        with pytest.raises(StoppedError, match="before the first step; run the same command"):
            train(config)
    assert StateFolder(config.output / STATES).steps() == []
    train(config)
    assert_same_run(config.output, whole.output)


def test_a_stop_while_scoring_is_honoured(configure, shard, tmp_path, monkeypatch):
    """What was trained is saved before the scoring; nothing is lost if it fails or is killed."""
    run = (*FULL, f"data.evaluate=['{shard}']", "engine.save_every=1000", "epochs=2")
    whole = configure(*run, f"output={tmp_path / 'scored'}")
    train(whole)
    config, scored = configure(*run), checkpoints.embed
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "embed", lambda *_args, **_keys: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    assert StateFolder(config.output / STATES).steps() == [4]

    def stopped(*args, **keys):
        os.kill(os.getpid(), signal.SIGTERM)
        return scored(*args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "embed", stopped)
        with pytest.raises(StoppedError, match="after step 3"):
            train(config)
    train(config)
    assert_same_run(config.output, whole.output)


def test_other_data_are_refused_without_epochs_too(configure, tmp_path):
    write_folder(tmp_path / "photos", PAIRS[:16])
    run = ("freeze_image=true", "regression.when=last", "epochs=0")
    first = train(configure(*run))
    assert train(configure(*run)).fingerprint == first.fingerprint
    with pytest.raises(ConfigError, match="stopped with other data"):
        train(configure(*run, f"data.train=['{tmp_path / 'photos'}']"))


@pytest.mark.parametrize("content", ["a: [", "- 1", "\xff", ""])
def test_a_damaged_description_of_the_run_is_said(configure, content):
    config = configure()
    config.output.mkdir()
    (config.output / "run.yaml").write_text(content, "latin-1")
    with pytest.raises(ConfigError, match=r"run\.yaml is damaged; give another output"):
        train(config)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_written_over(configure, name):
    config = configure()
    (config.output / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"holds {re.escape(name)}, which this run would"):
        train(config)
    assert [path.name for path in config.output.iterdir()] == [name]


def test_a_finished_run_is_left_as_it_is(configure, whole):
    before = (whole.output / "model.safetensors").read_bytes()
    result = train(whole)
    assert (whole.output / "model.safetensors").read_bytes() == before
    assert len(result.fingerprint) == 64
