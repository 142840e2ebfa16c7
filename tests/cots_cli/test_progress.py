"""Signs of life: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import threading

import pytest

from cots_cli.progress import steps

CODE = """
from cots_cli.progress import steps
with steps("loading", "searching") as done:
    done()
print("found")
"""


def test_each_step_is_told_on_a_terminal_and_gone_at_the_end() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    shown = bytearray()

    def read() -> None:
        try:
            while piece := os.read(ours, 1024):
                shown.extend(piece)
        except OSError:  # the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        subprocess.run(
            [sys.executable, "-c", CODE], stdout=theirs, stderr=theirs, check=True, timeout=60
        )
    finally:
        os.close(theirs)
        reader.join(10)
        os.close(ours)
    text = shown.decode()
    assert text.index("1/2 loading") < text.index("2/2 searching") < text.index("found")
    before_found = text[: text.index("found")].rsplit("\r", 1)[-1]
    assert before_found.strip() == ""


def test_nothing_is_told_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with steps("loading") as done:
        done()
    assert capsys.readouterr() == ("", "")
