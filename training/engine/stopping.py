"""Stopping a run between two steps when the process is asked to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from training.errors import TrainingError


class StoppedError(TrainingError):
    """The run was asked to stop, and saved its state."""


class StopRequest:
    """Whether the process was asked to end."""

    def __init__(self) -> None:
        self.signal: str | None = None


@contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """While it lasts, SIGTERM and the first Ctrl-C are noted; the second Ctrl-C interrupts."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
