"""The command line, run in this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cots_cli import main

Cots = Callable[..., tuple[int, str, str]]


def save_noise(path: Path, seed: int) -> None:
    """A picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def cots(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_logging: None
) -> Cots:
    """Run `cots ARGUMENTS`; gives the exit status, stdout and stderr."""
    monkeypatch.setenv("COTS_LOG_LEVEL", "WARNING")  # a run may set it

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
