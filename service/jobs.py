"""Jobs of the worker pools: how they wait, end and fail."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cots_model.errors import CotsError

log = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_AT_ONCE = 8  # results; whoever gets one has a millisecond's work to do


class QueueFullError(CotsError):
    """The queue holds as many jobs as it may, or as can be done before the deadline.

    Attributes:
        retry_s: when there may be room again, for a job that is not too long by itself.
    """

    def __init__(self, message: str, *, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class DeadlineError(CotsError):
    """The job was not finished in time and has been dropped."""


class PoolClosedError(CotsError):
    """The pool takes no more jobs."""


@dataclass(frozen=True)
class Done(Generic[R_co]):
    """A finished job: its result, the time it waited and the time its batch took."""

    value: R_co
    queue_ms: float
    work_ms: float


@dataclass(eq=False)
class Job(Generic[P, R]):
    """What waits in a queue.

    Attributes:
        payload: what it is.
        units: of work that it is expected to be.
        deadline_s: on the clock of `time.monotonic`.
        loop: of the one who waits for it.
        future: gets the result.
        submitted_s: likewise on that clock.
        urgent: goes first.
    """

    payload: P
    units: int
    deadline_s: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Done[R]]
    submitted_s: float
    urgent: bool

    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.future.done() and time.monotonic() < self.deadline_s

    def fail(self, error: Exception) -> None:
        """Call it in the event loop of the job."""
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self, pool: str) -> None:
        """Likewise."""
        self.fail(DeadlineError(f"{pool}: not finished before the deadline"))


def in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Have an event loop make a call, from any thread."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop has ended: nobody waits any more
        log.debug("result dropped: the event loop is closed")


def deliver_all(finished: Sequence[tuple[Job[P, R], Done[R]]]) -> None:
    """Give jobs of one event loop their results; waking the loop for each would take longer.

    A few at a time: what has come meanwhile is seen to between them, be it only to refuse it.
    """
    loop = finished[0][0].loop
    rest = deque(finished)

    def deliver() -> None:
        for job, done in [rest.popleft() for _ in range(min(_AT_ONCE, len(rest)))]:
            if not job.future.done():
                job.future.set_result(done)
        if rest:
            loop.call_soon(deliver)

    in_loop(loop, deliver)
