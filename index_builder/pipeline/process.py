"""One decoding process, seen from the builder.

Each has its own pipe, so that the builder always knows which original it is busy with.

Processes are forked from a clean server process that has imported what they need once: they start
in milliseconds, share its memory, and inherit no thread, lock or GPU context of the caller.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from dataclasses import dataclass

from cots_model.errors import CotsError
from index_builder.pipeline.fetch import Fetched
from index_builder.pipeline.limits import step_forward, usage_of
from index_builder.pipeline.protocol import READY, Answer, Jpeg, Order, Pixels, Settings
from index_builder.pipeline.worker import worker_main
from index_builder.sources.entry import Candidate

STARTUP_LIMIT_S = 180.0
_END_LIMIT_S = 10.0

_ORDERS_AHEAD = 2
_MOST_LIMITS = 5
_PRELOAD = ["cots_model.images", "cots_model.preprocess", "index_builder.pipeline.worker"]


@dataclass(frozen=True)
class Task:
    """One original to be decoded.

    Attributes:
        number: its place in the source.
        candidate: what it is.
        fetched: its bytes, if the builder has them.
        keep_jpeg: whether it may be handed back as a JPEG.
    """

    number: int
    candidate: Candidate
    fetched: Fetched | None = None
    keep_jpeg: bool = False


class Process:
    """A decoding process and the tasks it has been given.

    Attributes:
        connection: to wait on; something to be received, or the end of the process.
        tasks: what it is busy with, and what waits behind that.
        ready: whether it has started up.
        since_s: when it began the current step, on the monotonic clock.
    """

    def __init__(self, settings: Settings) -> None:
        """Start it; it says when it is ready."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=worker_main, args=(theirs, settings), daemon=True)
        self._process.start()
        theirs.close()
        self.tasks: deque[Task] = deque()
        self.ready = False
        self.since_s = time.monotonic()
        self._looked_at: tuple[float, float] | None = None  # beginning of a step, CPU time then
        # A video's clips are held back while others are waited for: nothing may wait behind it.
        self._orders_ahead = _ORDERS_AHEAD if settings.modality == "image" else 1

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, if it does so presently; the negative number of a signal."""
        self._process.join(0.25)
        return self._process.exitcode

    @property
    def ending(self) -> str:
        """How it ended, for people."""
        code = self.exit_code
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}"

    def takes(self, task: Task) -> bool:
        """Whether it can be given this task now.

        Long messages go to an idle process only: a busy one may itself be sending, and each would
        wait for the other to read.
        """
        if task.fetched is not None:
            return self.ready and not self.tasks
        return self.ready and len(self.tasks) < self._orders_ahead

    def give(self, task: Task) -> None:
        """Send a task; should the process have died, `receive` will tell."""
        if not self.tasks:
            self.since_s = time.monotonic()
        self.tasks.append(task)
        stamp = task.fetched.stamp if task.fetched else None
        with contextlib.suppress(OSError):
            self.connection.send(Order(task.candidate.location, stamp, task.keep_jpeg))
            if task.fetched is not None:
                self.connection.send_bytes(task.fetched.data)

    def receive(self) -> tuple[Answer | None, bytes]:
        """What it says, and the bytes behind it; `None` once, when it has become ready.

        Raises:
            EOFError, OSError: if it has died.
        """
        answer: Answer | str = self.connection.recv()
        payload = self.connection.recv_bytes() if isinstance(answer, Pixels | Jpeg) else b""
        self.since_s = time.monotonic()
        if isinstance(answer, str):
            assert answer == READY
            self.ready = True
            return None, b""
        return answer, payload

    def is_overdue(self, limit_s: float) -> bool:
        """Whether the current step takes too long.

        A process that is ready to run and is not given a core is not: what keeps the machine busy
        is none of its doing. Time on a core counts, from half of the limit on, when it is given
        ordinary priority too, where that is allowed. After five times the limit it always is: on a
        machine that stays busy, one that computes for ever would never have had its time.
        """
        elapsed_s = time.monotonic() - self.since_s
        if elapsed_s <= limit_s / 2:
            return False
        usage = usage_of(self.pid)
        if usage is None:
            return elapsed_s > limit_s
        if self._looked_at is None or self._looked_at[0] != self.since_s:
            step_forward(self.pid)
            self._looked_at = (self.since_s, usage.cpu_s)
        had_s = usage.cpu_s - self._looked_at[1]
        starved = usage.runs and had_s < 0.8 * limit_s / 2
        return elapsed_s > (_MOST_LIMITS * limit_s if starved else limit_s)

    def end(self) -> None:
        """Kill it, and wait until it is gone, unless it hangs in the system (a dead disk)."""
        self.connection.close()
        self._process.kill()
        self._process.join(_END_LIMIT_S)
        if self._process.exitcode is not None:
            self._process.close()


def cannot_start(why: str) -> CotsError:
    """The error for processes that do not come up."""
    return CotsError(
        f"the decoding processes could not be started ({why}); a script must make this call under "
        "`if __name__ == '__main__':` and be a file; otherwise see what they printed above"
    )
