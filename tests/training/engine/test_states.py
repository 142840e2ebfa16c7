"""Saved states: whole or not at all, checked, the last few kept."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from training.engine.states import StateFolder
from training.errors import TrainingError


def state_of(number: int) -> dict:
    return {"weights": {"w": torch.full((100,), float(number))}, "step": number, "name": "x"}


def test_a_state_comes_back_bit_for_bit(tmp_path):
    states = StateFolder(tmp_path / "states")
    assert states.load_latest() is None
    assert not (tmp_path / "states").exists()
    saved = {"w": torch.randn(5), "b": torch.randn(3).bfloat16(), "lr": 0.1, "order": [1, 2]}
    states.save(7, saved)
    step, loaded = states.load_latest()
    assert step == 7
    assert loaded.keys() == saved.keys()
    assert torch.equal(loaded["w"], saved["w"])
    assert torch.equal(loaded["b"], saved["b"])
    assert (loaded["lr"], loaded["order"]) == (0.1, [1, 2])


def test_only_the_newest_are_kept(tmp_path):
    states = StateFolder(tmp_path, keep=2)
    for step in (1, 30, 4):
        states.save(step, state_of(step))
    assert states.steps() == [30, 4]
    assert sorted(p.name[:15] + p.suffix for p in tmp_path.iterdir()) == [
        "state-000000004.json",
        "state-000000004.pt",
        "state-000000030.json",
        "state-000000030.pt",
    ]


def test_saved_again_at_the_same_step_the_first_stays_until_the_second_is_whole(
    tmp_path, monkeypatch
):
    states = StateFolder(tmp_path, keep=1)
    states.save(1, state_of(1))
    replace = Path.replace

    def killed(self, target):
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            states.save(1, state_of(2))
    assert states.load_latest()[1]["step"] == 1
    states.save(1, state_of(3))
    assert states.load_latest()[1]["step"] == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_what_killed_processes_began_is_removed(tmp_path):
    states = StateFolder(tmp_path, keep=2)
    states.save(1, state_of(1))
    for name in (
        "state-000000002.partial-77",
        "state-000000002.pt",
        "state-000000000.json.partial",
    ):
        (tmp_path / name).write_bytes(b"half")
    states.save(3, state_of(3))
    assert (
        sorted(path.name[:15] for path in tmp_path.iterdir())
        == ["state-000000001"] * 2 + ["state-000000003"] * 2
    )


def weights(folder: Path, step: int) -> Path:
    [path] = folder.glob(f"state-{step:09d}-*.pt")
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.unlink()])
def test_a_damaged_state_is_passed_over(tmp_path, damage, caplog):
    states = StateFolder(tmp_path)
    for step in (1, 2):
        states.save(step, state_of(step))
    damage(weights(tmp_path, 2))
    with caplog.at_level(logging.WARNING):
        step, loaded = states.load_latest()
    assert (step, loaded["step"]) == (1, 1)
    assert "state-000000002.json is damaged" in caplog.text
    damage(weights(tmp_path, 1))
    with pytest.raises(TrainingError, match=r"all 2 states in .* are damaged"):
        states.load_latest()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"step": 2}', b"\xff"])
def test_a_damaged_note_is_passed_over(tmp_path, content):
    states = StateFolder(tmp_path)
    for step in (1, 2):
        states.save(step, state_of(step))
    (tmp_path / "state-000000002.json").write_bytes(content)
    assert states.load_latest()[0] == 1


def test_a_state_that_fails_to_be_written_leaves_nothing(tmp_path):
    states = StateFolder(tmp_path)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        states.save(1, {"not storable": lambda: None})
    assert list(tmp_path.iterdir()) == []


def test_killed_while_writing_the_last_whole_state_is_there(tmp_path):
    writer = textwrap.dedent(
        """
        import sys, torch
        from pathlib import Path
        from training.engine.states import StateFolder
        states = StateFolder(Path(sys.argv[1]), keep=2)
        for step in range(1, 10**6):
            states.save(step, {"w": torch.full((200_000,), float(step))})
            print(step, flush=True)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", writer, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "1\n"
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    printed = [1, *map(int, process.communicate()[0].split())]
    step, state = StateFolder(tmp_path).load_latest()
    assert step in (printed[-1], printed[-1] + 1)
    assert torch.equal(state["w"], torch.full((200_000,), float(step)))
