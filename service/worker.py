"""Threads behind a bounded queue: where everything heavier than routing happens.

The encoder is a pool of one thread that takes many jobs at once, so requests that wait together are
encoded together. Decoding and searching are pools of several threads that take one job each.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cots_model.errors import CotsError
from service.stages import job_done

log = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class QueueFullError(CotsError):
    """The queue holds as many jobs as it may."""


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
class _Job(Generic[P, R]):
    payload: P
    deadline_s: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Done[R]]
    submitted_s: float
    urgent: bool

    def wanted(self) -> bool:
        return not self.future.done() and time.monotonic() < self.deadline_s

    def fail(self, error: Exception) -> None:
        """Call it in the event loop of the job."""
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self, pool: str) -> None:
        """Likewise."""
        self.fail(DeadlineError(f"{pool}: not finished before the deadline"))


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop has ended: nobody waits any more
        log.debug("result dropped: the event loop is closed")


def _deliver(finished: Sequence[tuple[_Job[P, R], Done[R]]]) -> None:
    """Give jobs of one event loop their results; waking the loop for each would take longer."""

    def deliver() -> None:
        for job, done in finished:
            if not job.future.done():
                job.future.set_result(done)

    _in_loop(finished[0][0].loop, deliver)


class WorkerPool(Generic[P, R]):
    """Daemon threads that run `handle` over queued jobs.

    Args:
        name: of the threads, for logs.
        handle: turns a batch of payloads into as many results, in order.
        capacity: jobs that may wait; one more raises `QueueFullError`.
        threads: number of threads.
        max_batch: most that `handle` is given at once, counted by `size`; a larger job goes alone.
        max_wait_s: longest time a job that a thread is free for waits for others of its kind.
        kind: only jobs of one kind share a batch.
        size: of a job; 1 for each by default.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Sequence[P]], Sequence[R]],
        *,
        capacity: int,
        threads: int = 1,
        max_batch: int = 1,
        max_wait_s: float = 0.0,
        kind: Callable[[P], object] = type,
        size: Callable[[P], int] = lambda _: 1,
    ) -> None:
        self.name = name
        self._handle = handle
        self._capacity = capacity
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._kind = kind
        self._size = size
        self._jobs: deque[_Job[P, R]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, payload: P, *, deadline_s: float, urgent: bool = False) -> Done[R]:
        """Queue a job and wait for it.

        Args:
            payload: what `handle` receives.
            deadline_s: on the clock of `time.monotonic`.
            urgent: goes first, and is accepted by a full queue.

        Raises:
            QueueFullError: at once, if the queue is full.
            DeadlineError: at the deadline; a job not yet begun is then never begun.
        """
        loop = asyncio.get_running_loop()
        job = _Job[P, R](payload, deadline_s, loop, loop.create_future(), time.monotonic(), urgent)
        self._put(job)
        timer = loop.call_later(deadline_s - job.submitted_s, job.expire, self.name)
        try:
            done = await job.future
        finally:
            timer.cancel()
            self._discard(job)
            del job  # its error holds this frame, which must not hold it and what it was given
        job_done(self.name, queue_ms=done.queue_ms, work_ms=done.work_ms)
        return done

    def close(self) -> None:
        """Take no more jobs; threads end with what is queued. It does not wait for them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, *, until_s: float) -> bool:
        """After `close`, wait for the threads to end; whether all have.

        Args:
            until_s: on the clock of `time.monotonic`.
        """
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def __len__(self) -> int:
        """Jobs waiting."""
        return len(self._jobs)

    def _put(self, job: _Job[P, R]) -> None:
        with self._changed:
            if self._closed:
                raise PoolClosedError(f"{self.name}: shutting down")
            if job.urgent:
                self._jobs.appendleft(job)
            elif len(self._jobs) >= self._capacity:
                raise QueueFullError(f"{self.name}: {self._capacity} jobs are waiting already")
            else:
                self._jobs.append(job)
            self._changed.notify()

    def _discard(self, job: _Job[P, R]) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    def _work(self) -> None:
        while jobs := self._take():
            self._serve([job for job in jobs if job.wanted()])
            del jobs  # a thread that waits must not keep what a job held: a gallery's version

    def _take(self) -> list[_Job[P, R]]:
        """Wait for a job; with it come the waiting ones of its kind. Empty when closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                self._wait_for_company()
                if self._jobs:
                    return self._take_batch()
                if self._closed:
                    return []

    def _wait_for_company(self) -> None:
        """Give others the time to come, while the first job can wait and the batch is not full."""
        while self._max_wait_s and self._jobs and not self._closed:
            first = self._jobs[0]
            left_s = first.submitted_s + self._max_wait_s - time.monotonic()
            num_together = sum(self._size(job.payload) for job in self._alike())
            if first.urgent or left_s <= 0 or num_together >= self._max_batch:
                return
            self._changed.wait(left_s)

    def _alike(self) -> list[_Job[P, R]]:
        """The jobs of the kind of the first."""
        kind = self._kind(self._jobs[0].payload)
        return [job for job in self._jobs if self._kind(job.payload) == kind]

    def _take_batch(self) -> list[_Job[P, R]]:
        room = self._max_batch
        batch: list[_Job[P, R]] = []
        for job in self._alike():
            room -= self._size(job.payload)
            if batch and room < 0:
                break
            batch.append(job)
            self._jobs.remove(job)
        return batch

    def _serve(self, jobs: list[_Job[P, R]]) -> None:
        if not jobs:
            return
        begun_s = time.monotonic()
        try:
            values = self._handle([job.payload for job in jobs])
        except Exception as err:  # whatever one job raises must not end the thread
            log.debug("%s: a batch of %d failed", self.name, len(jobs), exc_info=True)
            self._serve_apart(jobs, err)
            return
        work_ms = (time.monotonic() - begun_s) * 1000
        finished: dict[asyncio.AbstractEventLoop, list[tuple[_Job[P, R], Done[R]]]] = {}
        for job, value in zip(jobs, values, strict=True):
            done = Done(value, (begun_s - job.submitted_s) * 1000, work_ms)
            finished.setdefault(job.loop, []).append((job, done))
        for of_loop in finished.values():
            _deliver(of_loop)

    def _serve_apart(self, jobs: list[_Job[P, R]], err: Exception) -> None:
        """One bad job fails alone: after a failed batch, each job is run by itself."""
        if len(jobs) == 1:
            _in_loop(jobs[0].loop, functools.partial(jobs[0].fail, err))
            return
        for job in jobs:
            self._serve([job] if job.wanted() else [])
