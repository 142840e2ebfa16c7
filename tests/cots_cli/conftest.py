"""The command line, run in this process."""

import logging
from collections.abc import Callable, Iterator

import pytest

from cots_cli import main

Cots = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cots(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cots]:
    """Run `cots ARGUMENTS`; gives the exit status, stdout and stderr."""
    monkeypatch.setenv("COTS_LOG_LEVEL", "WARNING")  # a run may set it
    handlers, level = logging.root.handlers[:], logging.root.level

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    yield run
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
