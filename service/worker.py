"""Threads behind a bounded queue: where everything heavier than routing happens.

The encoder is a pool that takes many jobs at once, so requests that wait together are encoded
together. Decoding and searching are pools of several threads that take one job each.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from service.jobs import (
    Done,
    Job,
    PoolClosedError,
    QueueFullError,
    deliver_all,
    in_loop,
)
from service.pace import Pace
from service.stages import job_done

log = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")


class WorkerPool(Generic[P, R]):
    """Daemon threads that run `handle` over queued jobs.

    Args:
        name: of the threads, for logs.
        handle: turns a batch of payloads into as many results, in order.
        capacity: jobs that may wait; one more raises `QueueFullError`.
        threads: batches at a time.
        overlap: one batch more may begin, on cores that those before leave idle: when `handle` has
            had `next_may_begin` called.
        max_batch: most that `handle` is given at once, counted by `size`; a larger job goes alone.
        max_batch_s: a batch that would take longer is cut there; the rest is for the next one.
        cores: that share a batch; it is cut to a multiple of this many units, so that they end
            together, and never below.
        max_wait_s: longest time a job that a thread is free for waits for others of its kind.
        kind: only jobs of one kind share a batch.
        size: of a job; 1 for each by default.
        work: units of work of a job, each of which takes about as long for jobs of one type. Given
            that, a job is refused if no thread is free for it and it would, by the pace of the
            last batches, not be done before its deadline.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Sequence[P]], Sequence[R]],
        *,
        capacity: int,
        threads: int = 1,
        overlap: bool = False,
        max_batch: int = 1,
        max_batch_s: float = math.inf,
        cores: int = 1,
        max_wait_s: float = 0.0,
        kind: Callable[[P], object] = type,
        size: Callable[[P], int] = lambda _: 1,
        work: Callable[[P], int] = lambda _: 0,
    ) -> None:
        self.name = name
        self._handle = handle
        self._capacity = capacity
        self._max_batch = max_batch
        self._max_batch_s = max_batch_s
        self._cores = cores
        self._max_wait_s = max_wait_s
        self._kind = kind
        self._size = size
        self._work_of = work
        self._pace = Pace()
        self._jobs: deque[Job[P, R]] = deque()
        self._changed = threading.Condition()
        self._begun_s: dict[int, float] = {}
        self._at_once = threads
        self._overlap = overlap
        self._turns: dict[int, object] = {}  # of the batch that each thread has
        self._held: set[object] = set()  # turns that the next batch has to wait for
        self._last_s = -math.inf, -math.inf  # when the batch that was done last began and ended
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True)
            for n in range(threads + overlap)
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
            QueueFullError: at once, if the queue is full, or too long for the deadline.
            DeadlineError: at the deadline; a job not yet begun is then never begun.
        """
        loop = asyncio.get_running_loop()
        units, now_s = self._work_of(payload), time.monotonic()
        job = Job[P, R](payload, units, deadline_s, loop, loop.create_future(), now_s, urgent)
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

    def require_room(self, job_type: type[P], units: int, *, deadline_s: float) -> None:
        """Refuse now what `run` would refuse, before anything is spent on making the job.

        Args:
            job_type: of its payload.
            units: of work that it will be.
            deadline_s: on the clock of `time.monotonic`.

        Raises:
            QueueFullError: as `run`.
        """
        with self._changed:
            expected_s = self._expected_s(job_type, units)
            left_s = deadline_s - time.monotonic()
            if len(self._jobs) >= self._capacity + self._free:  # who is free is about to take one
                message = f"{self.name}: {self._capacity} jobs are waiting already"
                raise QueueFullError(message, retry_s=expected_s - left_s)
            if 0 < left_s < expected_s:
                message = f"{self.name}: would be done in {expected_s:.1f} s, has {left_s:.1f} s"
                raise QueueFullError(message, retry_s=expected_s - left_s)

    def next_may_begin(self) -> Callable[[], None]:
        """For `handle`: what any thread may call once this batch leaves a core idle.

        After the batch it does nothing.
        """
        turn = self._turns[threading.get_ident()]

        def release() -> None:
            with self._changed:
                self._release(turn)

        return release

    @property
    def _free(self) -> int:
        """Batches that may begin now."""
        idle = len(self._threads) - self._pace.num_busy
        return min(self._at_once - len(self._held), idle)

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

    @property
    def longest_s(self) -> float:
        """How long a thread is at work that has not come back longest; 0 if all wait."""
        begun_s = min(self._begun_s.copy().values(), default=math.inf)
        return max(0.0, time.monotonic() - begun_s)

    def __len__(self) -> int:
        """Jobs waiting."""
        return len(self._jobs)

    def _put(self, job: Job[P, R]) -> None:
        with self._changed:
            if self._closed:
                raise PoolClosedError(f"{self.name}: shutting down")
            if job.urgent:
                self._jobs.appendleft(job)
            else:
                self.require_room(type(job.payload), job.units, deadline_s=job.deadline_s)
                self._jobs.append(job)
            self._pace.wait(type(job.payload), job.units)
            if self._free:  # else whoever ends looks for it
                self._changed.notify()

    def _expected_s(self, job_type: type[P], units: int) -> float:
        """How long until a job that comes now is done; 0 if a thread is free for it."""
        if len(self._jobs) < self._free:
            return 0.0
        return self._pace.left_s() / self._at_once + self._pace.expected_s(job_type, units)

    def _remove(self, job: Job[P, R]) -> None:
        self._jobs.remove(job)
        self._pace.wait(type(job.payload), -job.units)

    def _discard(self, job: Job[P, R]) -> None:
        with self._changed:
            if job in self._jobs:
                self._remove(job)

    def _work(self) -> None:
        while jobs := self._take():
            self._serve([job for job in jobs if job.wanted()])
            with self._changed:
                self._end()
                del self._begun_s[threading.get_ident()], self._turns[threading.get_ident()]
            del jobs  # a thread that waits must not keep what a job held: a gallery's version

    def _take(self) -> list[Job[P, R]]:
        """Wait for a job; with it come the waiting ones of its kind. Empty when closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._free if self._jobs else self._closed)
                if not self._jobs:
                    self._changed.notify_all()  # another waited for the turn that took the last
                    return []
                self._wait_for_company()
                if self._jobs and self._free:
                    batch, _ = self._next_batch()
                    for job in batch:
                        self._remove(job)
                    self._pace.begin(type(batch[0].payload), sum(job.units for job in batch))
                    self._begun_s[threading.get_ident()] = time.monotonic()
                    turn = self._turns[threading.get_ident()] = object()
                    self._held.add(turn)
                    return batch

    def _wait_for_company(self) -> None:
        """Give others the time to come, while the first job can wait and the batch is not full."""
        while self._max_wait_s and self._jobs and not self._closed:
            first = self._jobs[0]
            left_s = first.submitted_s + self._max_wait_s - time.monotonic()
            if first.urgent or left_s <= 0 or self._next_batch()[1]:
                return
            self._changed.wait(left_s)

    def _next_batch(self) -> tuple[list[Job[P, R]], bool]:
        """The jobs of the kind of the first that go with it, and whether no more would."""
        kind = self._kind(self._jobs[0].payload)
        batch: list[Job[P, R]] = []
        most_units = self._most_units(type(self._jobs[0].payload))
        size = units = 0
        for job in self._jobs:
            if self._kind(job.payload) != kind:
                continue
            size += self._size(job.payload)
            units += job.units
            if batch and (size > self._max_batch or units > most_units):
                return batch, True
            batch.append(job)
        return batch, size >= self._max_batch or units >= most_units

    def _most_units(self, job_type: type[P]) -> float:
        """As many as take `max_batch_s`, the same number for each core."""
        one_s = self._pace.expected_s(job_type, 1)
        if not one_s or self._max_batch_s == math.inf:
            return math.inf
        return max(1, int(self._max_batch_s / one_s / self._cores)) * self._cores

    def _serve(self, jobs: list[Job[P, R]], *, left: int = 0) -> None:
        """Do a batch, after which so many units of a failed one are left."""
        if not jobs:
            return
        begun_s = time.monotonic()
        try:
            values = self._handle([job.payload for job in jobs])
            results = list(zip(jobs, values, strict=True))
        except BaseException as err:  # whatever one job raises must not end the thread
            log.debug("%s: a batch of %d failed", self.name, len(jobs), exc_info=True)
            self._serve_apart(jobs, _as_exception(err), left=left)
            return
        ended_s = time.monotonic()
        work_ms = (ended_s - begun_s) * 1000
        with self._changed:
            units = sum(job.units for job in jobs)
            other_s, done_s = self._last_s  # of the batch that had the cores, too, for a while
            beside_s = max(0.0, done_s - max(begun_s, other_s)) if self._overlap else 0.0
            self._pace.learn(type(jobs[0].payload), units, ended_s - begun_s - beside_s)
            self._last_s = begun_s, ended_s
        self._has_left(jobs[0], left)
        finished: dict[asyncio.AbstractEventLoop, list[tuple[Job[P, R], Done[R]]]] = {}
        for job, value in results:
            done = Done(value, (begun_s - job.submitted_s) * 1000, work_ms)
            finished.setdefault(job.loop, []).append((job, done))
        for of_loop in finished.values():
            deliver_all(of_loop)

    def _serve_apart(self, jobs: list[Job[P, R]], err: Exception, *, left: int) -> None:
        """One bad job fails alone: after a failed batch, each job is run by itself."""
        if len(jobs) == 1:
            self._has_left(jobs[0], left)
            in_loop(jobs[0].loop, functools.partial(jobs[0].fail, err))
            return
        left = sum(job.units for job in jobs)
        for job in jobs:
            left -= job.units
            self._serve([job] if job.wanted() else [], left=left)

    def _has_left(self, job: Job[P, R], units: int) -> None:
        """So much of the batch is left for this thread; before those who get results come again."""
        with self._changed:
            if units:
                self._pace.begin(type(job.payload), units)
            else:
                self._end()

    def _end(self) -> None:
        """The batch of this thread is done."""
        self._pace.end()
        self._release(self._turns[threading.get_ident()])

    def _release(self, turn: object) -> None:
        """Another batch may begin, if it had to wait for this turn."""
        if turn in self._held:
            self._held.remove(turn)
            if self._jobs:
                self._changed.notify()


def _as_exception(err: BaseException) -> Exception:
    """What a future takes: a panic of a library in Rust, say, is no `Exception`."""
    if isinstance(err, Exception) and not isinstance(err, StopIteration):
        return err
    fault = RuntimeError(f"{type(err).__name__}: {err}")
    fault.__cause__ = err
    return fault
