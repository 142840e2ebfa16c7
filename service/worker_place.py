"""One place among several workers, and the process that has it now."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess

from service.heartbeat import Pulse

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SETTLED_S = 60.0
"""A worker that ran this long may fail again without a longer pause."""


def pause_s(failures: int) -> float:
    """Seconds before a worker is started again that failed `failures` times in a row."""
    return min(_FIRST_PAUSE_S * 2.0 ** max(0, failures - 1), _LONGEST_PAUSE_S)


@dataclass
class Place:
    """A place that one worker process after another has.

    Attributes:
        number: of the place.
        process: `None` between two.
        reports: the pipe to it; `None` once it is closed.
        pulse: how long it has been silent.
        begun_s: when it was started.
        failures: how often in a row a process of this place failed.
        start_at_s: when the next one is due.
        told_s: when it was told to end for its silence.
        patience_s: how long after that it is killed.
    """

    number: int
    process: BaseProcess | None = None
    reports: connection.Connection | None = None
    pulse: Pulse | None = None
    begun_s: float = 0.0
    failures: int = 0
    start_at_s: float = 0.0
    told_s: float | None = None
    patience_s: float = 0.0

    def take(self, process: BaseProcess, reports: connection.Connection, pulse: Pulse) -> None:
        """A process was started here."""
        self.process, self.reports, self.pulse = process, reports, pulse
        self.begun_s, self.told_s = time.monotonic(), None

    def leave(self) -> None:
        """The process has ended."""
        self.hang_up()
        self.process = None

    def fail(self) -> float:
        """A process failed here, or could not be started; seconds until the next one is due."""
        settled = time.monotonic() - self.begun_s > _SETTLED_S
        self.failures = 1 if settled else self.failures + 1
        wait_s = pause_s(self.failures)
        self.start_at_s = time.monotonic() + wait_s
        return wait_s

    def hang_up(self) -> None:
        """Hear no more of the process."""
        if self.reports is not None:
            self.reports.close()
            self.reports = None

    def signal(self, sig: int) -> None:
        """Send a signal to the process, if there is one."""
        if self.process is not None and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, sig)

    def fields(self) -> dict[str, object]:
        """Which process this is, for logs."""
        pid = None if self.process is None else self.process.pid
        return {"worker": self.number, "worker_pid": pid}
