"""How far an epoch is: a bar on a terminal, lines in a file."""

import io
import logging
import sys
from types import SimpleNamespace

import pytest

from training.engine import progress
from training.engine.progress import StepsShown

log = logging.getLogger("training.engine.run")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def minutes(monkeypatch):
    """A clock that goes on by 40 s whenever it is asked."""
    now = iter(range(0, 10**6, 40))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(now))))


def test_without_a_terminal_there_is_a_line_a_minute(minutes, caplog):
    caplog.set_level(logging.INFO)
    with StepsShown(log, "epoch 3", total=10, initial=4) as shown:
        for _ in range(6):
            shown.step("loss 1.5")
    assert 2 <= len(caplog.messages) < 6
    assert caplog.messages[0].startswith("epoch 3: step 6 of 10, loss 1.5, 0:0")


def test_fast_epochs_have_no_lines(caplog, capsys):
    caplog.set_level(logging.INFO)
    with StepsShown(log, "epoch 0", total=50) as shown:
        for _ in range(50):
            shown.step("loss 1.5")
    assert caplog.messages == []
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with StepsShown(log, "epoch 0", total=3) as shown:
        for _ in range(3):
            shown.step("loss 1.5")
    assert "epoch 0" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_other_processes_show_nothing(minutes, caplog, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with StepsShown(log, "epoch 0", total=3, enabled=False) as shown:
        for _ in range(3):
            shown.step("loss 1.5")
    assert caplog.messages == []
    assert terminal.getvalue() == ""
