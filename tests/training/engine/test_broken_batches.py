"""Batches of which no picture can be read: an epoch has fewer steps, and still ends as one."""

import pytest

from tests.training.conftest import PAIRS, write_folder
from tests.training.engine.test_resume import assert_same_run, stop_at
from training.engine import checkpoints, run
from training.engine.progress import StepsShown
from training.engine.states import STATES, StateFolder
from training.engine.stopping import StoppedError
from training.trainer import train


@pytest.fixture
def broken(configure, tmp_path, shard):
    """The keys of a run of 6 pictures, each a batch of its own, of which one is damaged."""
    folder = write_folder(tmp_path / "photos", PAIRS[:6])
    (folder / "02.png").write_bytes(b"no picture")
    return (
        "batch_size=1",
        "epochs=2",
        "engine.save_every=1000",
        f"data={{train: ['{folder}'], evaluate: ['{shard}'], max_broken_share: 0.5}}",
    )


def test_an_epoch_is_saved_before_it_is_scored(configure, broken, monkeypatch):
    """Whichever of its batches is broken."""
    config = configure(*broken)
    monkeypatch.setattr(checkpoints, "embed", lambda *_args, **_keys: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config)
    assert StateFolder(config.output / STATES).steps() == [5]


def test_a_stopped_run_shows_how_far_it_is_and_goes_on_exactly(
    configure, broken, monkeypatch, tmp_path
):
    whole, config = configure(*broken, f"output={tmp_path / 'whole'}"), configure(*broken)
    train(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(StoppedError):
            train(config)
    _, state = StateFolder(config.output / STATES).load_latest()
    shown = []

    class Seen(StepsShown):
        def __init__(self, *args, total, initial, **keys):
            shown.append((initial, total))
            super().__init__(*args, total=total, initial=initial, **keys)

    monkeypatch.setattr(run, "StepsShown", Seen)
    train(config)
    assert shown == [(state["progress"]["place"]["step"], 6)]
    assert shown[0][0] in (3, 4)  # three steps, and the broken batch if it came before
    assert_same_run(config.output, whole.output)
