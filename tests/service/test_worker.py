"""Threads behind a queue: order, batches, deadlines, and what happens when they hang."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from service import worker
from service.jobs import DeadlineError, Done, QueueFullError, deliver_all
from service.pace import Pace
from service.readiness import Readiness
from service.state import CallPool
from service.worker import WorkerPool
from tests.service.conftest import wait_until


def test_pool_drops_cancelled_and_late_jobs() -> None:
    gate, seen = threading.Event(), []

    def handle(jobs):
        gate.wait(10)
        seen.extend(jobs)
        return jobs

    async def scenario() -> None:
        pool = WorkerPool("test", handle, capacity=2)
        far = time.monotonic() + 10
        first = asyncio.create_task(pool.run("first", deadline_s=far))
        await asyncio.sleep(0.05)
        cancelled = asyncio.create_task(pool.run("cancelled", deadline_s=far))
        late = asyncio.create_task(pool.run("late", deadline_s=time.monotonic() + 0.1))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await pool.run("too many", deadline_s=far)
        cancelled.cancel()
        with pytest.raises(DeadlineError):
            await late
        assert len(pool) == 0  # neither holds a place any more
        gate.set()
        assert (await first).value == "first"
        pool.close()

    asyncio.run(scenario())
    assert seen == ["first"]


def test_pool_runs_no_late_job_again_after_a_failed_batch() -> None:
    gate, seen = threading.Event(), []

    def handle(jobs):
        seen.append(list(jobs))
        if len(jobs) > 1:
            gate.wait(10)
            raise ValueError("one of them is bad")
        return jobs

    async def scenario() -> None:
        pool = WorkerPool("test", handle, capacity=9, max_batch=9)
        far = time.monotonic() + 10
        with pool._changed:  # no thread takes a job before all are there
            late = asyncio.create_task(pool.run("late", deadline_s=time.monotonic() + 0.3))
            good = asyncio.create_task(pool.run("good", deadline_s=far))
            await asyncio.sleep(0)
        with pytest.raises(DeadlineError):
            await late
        gate.set()
        assert (await good).value == "good"
        pool.close()

    asyncio.run(scenario())
    assert seen == [["late", "good"], ["good"]]


def test_wedged_threads_are_not_ready_and_are_named() -> None:
    gate = threading.Event()

    async def scenario() -> None:
        pool = CallPool("decode", threads=1, capacity=2)
        readiness = Readiness({}, {"decode": pool}, interval_s=60.0, max_age_s=0.3, max_job_s=60.0)
        await readiness.probe()
        assert readiness.reasons() == []
        stuck = asyncio.create_task(pool.run(gate.wait, deadline_s=time.monotonic() + 10))
        await asyncio.sleep(0.05)
        await readiness.probe()
        assert any("decode" in reason for reason in readiness.reasons())
        gate.set()
        await stuck
        await readiness.probe()
        assert readiness.reasons() == []
        pool.close()

    asyncio.run(scenario())


def test_one_stuck_thread_of_two_is_told() -> None:
    gate = threading.Event()

    async def scenario() -> None:
        pools = {name: CallPool(name, threads=2, capacity=2) for name in ("search", "decode")}
        readiness = Readiness(
            {"search": pools["search"]},
            {"decode": pools["decode"]},
            interval_s=60.0,
            max_age_s=60.0,
            max_job_s=0.3,
        )
        stuck = [
            asyncio.create_task(pool.run(gate.wait, deadline_s=in_s(10))) for pool in pools.values()
        ]
        await asyncio.sleep(0.1)
        await readiness.probe()  # the other thread answers
        assert (readiness.reasons(), readiness.warnings()) == ([], [])
        await asyncio.sleep(0.3)
        assert readiness.reasons() == ["search: a thread has been at one job for 0 s"]
        assert readiness.warnings() == ["decode: a thread has been at one job for 0 s"]
        gate.set()
        await asyncio.gather(*stuck)
        await asyncio.to_thread(wait_until, lambda: not any(p.longest_s for p in pools.values()))
        assert (readiness.reasons(), readiness.warnings()) == ([], [])
        for pool in pools.values():
            pool.close()

    asyncio.run(scenario())


def test_pool_batches_one_kind_in_order() -> None:
    gate, batches = threading.Event(), []

    def handle(jobs):
        gate.wait(10)
        batches.append(list(jobs))
        return jobs

    async def scenario() -> list[object]:
        pool = WorkerPool("test", handle, capacity=20, max_batch=3)
        far = time.monotonic() + 10
        payloads = ["a", 1, "b", 2, "c", "d"]
        first = asyncio.create_task(pool.run(0.5, deadline_s=far))
        await asyncio.sleep(0.05)
        tasks = [asyncio.create_task(pool.run(p, deadline_s=far)) for p in payloads]
        await asyncio.sleep(0.05)
        gate.set()
        await first
        done = [(await task).value for task in tasks]
        pool.close()
        return done

    assert asyncio.run(scenario()) == ["a", 1, "b", 2, "c", "d"]
    assert batches == [[0.5], ["a", "b", "c"], [1, 2], ["d"]]


def test_a_job_waits_for_company_until_the_batch_is_full() -> None:
    batches = []

    def handle(jobs):
        batches.append(list(jobs))
        return jobs

    async def scenario() -> float:
        pool = WorkerPool("test", handle, capacity=9, max_batch=3, max_wait_s=5.0)
        begun_s = time.monotonic()
        far = begun_s + 10
        tasks = []
        for number in range(3):
            tasks.append(asyncio.create_task(pool.run(number, deadline_s=far)))
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)
        pool.close()
        return time.monotonic() - begun_s

    assert asyncio.run(scenario()) < 4
    assert batches == [[0, 1, 2]]


def test_a_job_without_company_goes_alone_after_its_wait_and_an_urgent_one_at_once() -> None:
    async def scenario() -> tuple[float, float]:
        pool = WorkerPool("test", list, capacity=9, max_batch=3, max_wait_s=0.3)
        far = time.monotonic() + 10
        waited = await pool.run("alone", deadline_s=far)
        urgent = await pool.run("urgent", deadline_s=far, urgent=True)
        pool.close()
        return waited.queue_ms, urgent.queue_ms

    alone_ms, urgent_ms = asyncio.run(scenario())
    assert alone_ms >= 295
    assert urgent_ms < 295


def test_a_pool_that_is_closed_does_not_wait_for_company() -> None:
    async def scenario() -> float:
        pool = WorkerPool("test", list, capacity=9, max_batch=3, max_wait_s=60.0)
        task = asyncio.create_task(pool.run("last", deadline_s=time.monotonic() + 30))
        await asyncio.sleep(0.05)
        begun_s = time.monotonic()
        pool.close()
        assert (await task).value == "last"
        return time.monotonic() - begun_s

    assert asyncio.run(scenario()) < 20


class Overlapping:
    """Ends each batch, or lets the next begin beside it, when told."""

    def __init__(self) -> None:
        self.releases: list[Callable[[], None]] = []
        self.gates: list[threading.Event] = []
        self.pool = WorkerPool("test", self, capacity=9, overlap=True)

    def __call__(self, jobs: Sequence[str]) -> Sequence[str]:
        gate = threading.Event()
        self.gates.append(gate)
        self.releases.append(self.pool.next_may_begin())
        assert gate.wait(30)
        return jobs

    async def begun(self, number: int) -> bool:
        """Whether so many batches have begun, and no more do in a while."""
        await asyncio.to_thread(wait_until, lambda: len(self.gates) >= number)
        await asyncio.sleep(0.1)
        return len(self.gates) == number


def test_a_batch_begins_beside_another_once_that_leaves_a_core() -> None:
    async def scenario() -> None:
        held = Overlapping()
        names = ["a", "b", "c", "d"]
        jobs = [asyncio.create_task(held.pool.run(n, deadline_s=in_s(30))) for n in names]
        assert await held.begun(1)
        held.releases[0]()
        assert await held.begun(2)
        held.releases[0]()  # told again
        assert await held.begun(2)
        held.gates[0].set()
        await jobs[0]
        assert await held.begun(2)  # a thread is free; the cores are not
        held.releases[1]()
        assert await held.begun(3)
        held.gates[1].set()
        held.gates[2].set()
        await jobs[2]
        assert await held.begun(4)
        held.releases[1]()  # late: its batch has ended
        held.gates[3].set()
        assert [(await job).value for job in jobs] == names
        await asyncio.to_thread(wait_until, lambda: held.pool.longest_s == 0)
        assert held.pool._free == 1
        held.pool.close()

    asyncio.run(scenario())


def test_a_thread_is_woken_for_what_it_may_begin_only(monkeypatch) -> None:
    async def scenario() -> None:
        held = Overlapping()
        woken: list[int] = []
        wake = held.pool._changed.notify
        monkeypatch.setattr(
            held.pool._changed, "notify", lambda *n: (woken.append(len(held.pool)), wake(*n))
        )
        jobs = [asyncio.create_task(held.pool.run("a", deadline_s=in_s(30)))]
        assert await held.begun(1)
        jobs.append(asyncio.create_task(held.pool.run("b", deadline_s=in_s(30))))
        assert await held.begun(1)
        assert len(held.pool) == 1
        assert woken == [1]  # for the first: the second waits for a turn
        held.releases[0]()
        assert await held.begun(2)
        for gate in held.gates:
            gate.set()
        assert [(await job).value for job in jobs] == ["a", "b"]
        held.pool.close()

    asyncio.run(scenario())


def test_a_pool_that_overlaps_ends_with_what_is_queued() -> None:
    async def scenario() -> None:
        held = Overlapping()
        jobs = [asyncio.create_task(held.pool.run(n, deadline_s=in_s(30))) for n in "ab"]
        assert await held.begun(1)
        held.pool.close()
        held.gates[0].set()
        assert await held.begun(2)
        held.gates[1].set()
        assert [(await job).value for job in jobs] == ["a", "b"]
        assert held.pool.join(until_s=in_s(10))

    asyncio.run(scenario())


def test_a_batch_beside_another_teaches_what_both_took() -> None:
    def handle(jobs):
        pool.next_may_begin()()
        time.sleep(0.2)
        return jobs

    pool = WorkerPool("test", handle, capacity=99, overlap=True, work=lambda _: 1)

    async def scenario() -> float:
        await pool.run(0, deadline_s=in_s(30))  # to warm up
        begun_s = time.monotonic()
        jobs = (pool.run(number, deadline_s=in_s(30)) for number in range(8))
        await asyncio.gather(*jobs)
        pool.close()
        return (time.monotonic() - begun_s) / 8

    took_s = asyncio.run(scenario())  # two at a time: less than 0.2
    assert took_s < 0.19
    assert pool._pace.expected_s(int, 1) == pytest.approx(took_s, rel=0.3)


def test_a_short_batch_beside_a_long_one_does_not_make_it_short() -> None:
    long_s = []

    def handle(jobs):
        pool.next_may_begin()()
        begun_s = time.monotonic()
        time.sleep(0.1 if isinstance(jobs[0], str) else 0.8)
        if isinstance(jobs[0], int):
            long_s.append(time.monotonic() - begun_s)
        return jobs

    pool = WorkerPool("test", handle, capacity=99, overlap=True, work=lambda _: 1)

    async def scenario() -> None:
        for payload in (0, "a"):  # to warm up
            await pool.run(payload, deadline_s=in_s(30))
        for _ in range(3):
            long = asyncio.create_task(pool.run(0, deadline_s=in_s(30)))
            await asyncio.sleep(0.4)
            await pool.run("a", deadline_s=in_s(30))
            assert not long.done()
            await long
        pool.close()

    asyncio.run(scenario())
    # without what the other had, and no more
    assert 0.5 < pool._pace.expected_s(int, 1) < max(long_s) - 0.05
    assert pool._pace.expected_s(str, 1) > 0.09


def test_two_batches_that_end_are_all_there_may_be() -> None:
    async def scenario() -> None:
        held = Overlapping()
        held.pool._capacity = 0
        jobs = []
        for number in range(2):
            jobs.append(asyncio.create_task(held.pool.run("a", deadline_s=in_s(30))))
            assert await held.begun(number + 1)
            held.releases[number]()
        with pytest.raises(QueueFullError):
            await held.pool.run("b", deadline_s=in_s(30))
        for gate in held.gates:
            gate.set()
        await asyncio.gather(*jobs)
        held.pool.close()

    asyncio.run(scenario())


class Held:
    """Does its jobs when told, and keeps the batches that it was given; a job is its units."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, jobs: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(jobs))
        self.begun.set()
        assert self.gate.wait(30)
        return jobs


def paced(handle: Held, unit_s: float, **options) -> WorkerPool[int, int]:
    """A pool that has learned how long a unit takes."""
    pool = WorkerPool("test", handle, work=int, **{"capacity": 99, **options})
    for _ in range(2):  # the first time counts for nothing
        pool._pace.learn(int, 1, unit_s)
    return pool


def in_s(seconds: float) -> float:
    return time.monotonic() + seconds


def has_room(pool: WorkerPool[int, int], units: int, seconds: float, job: type = int) -> bool:
    try:
        pool.require_room(job, units, deadline_s=in_s(seconds))
    except QueueFullError:
        return False
    return True


async def held_up(pool: WorkerPool[int, int], held: Held, units: int) -> asyncio.Task[Done[int]]:
    """A job that a thread has begun."""
    task = asyncio.create_task(pool.run(units, deadline_s=in_s(1000)))
    await asyncio.to_thread(held.begun.wait, 30)
    return task


def test_a_pool_takes_no_more_than_it_can_do_before_the_deadline() -> None:
    async def scenario() -> tuple[list[object], list[float]]:
        held = Held()
        pool = paced(held, 10.0)
        first = await held_up(pool, held, 1)
        tasks = [asyncio.create_task(pool.run(1, deadline_s=in_s(100))) for _ in range(60)]
        await asyncio.sleep(0)
        held.gate.set()
        outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)
        pool.close()
        return outcomes, [one.retry_s for one in outcomes if isinstance(one, QueueFullError)]

    outcomes, retries_s = asyncio.run(scenario())
    taken = [one for one in outcomes if not isinstance(one, Exception)]
    assert len(taken) == 10  # of 10 s each, the one that was begun among them
    assert len(retries_s) == 51
    assert all(0 < retry_s < 11 for retry_s in retries_s)


def test_room_is_for_what_waits_and_for_the_job_itself() -> None:
    async def scenario() -> None:
        held = Held()
        pool = paced(held, 10.0)
        assert has_room(pool, 99, 1)  # a thread is free: better late than never
        first = await held_up(pool, held, 4)
        second = asyncio.create_task(pool.run(2, deadline_s=in_s(1000)))
        await asyncio.sleep(0)
        assert [has_room(pool, 1, seconds) for seconds in (55, 75)] == [False, True]
        assert [has_room(pool, 3, seconds) for seconds in (75, 95)] == [False, True]
        assert has_room(pool, 99, 75, job=str)  # never done: expected to take no time
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert [has_room(pool, 1, seconds) for seconds in (35, 55)] == [False, True]
        held.gate.set()
        await first
        assert has_room(pool, 99, 1)
        pool.close()

    asyncio.run(scenario())


def test_a_job_past_its_deadline_is_late_and_not_refused() -> None:
    async def scenario() -> None:
        held = Held()
        pool = paced(held, 10.0)
        first = await held_up(pool, held, 1)
        with pytest.raises(DeadlineError):
            await pool.run(1, deadline_s=in_s(-1))
        held.gate.set()
        await first
        pool.close()

    asyncio.run(scenario())


def test_each_thread_takes_its_share_of_what_waits() -> None:
    async def scenario() -> None:
        held = Held()
        pool = paced(held, 10.0, threads=2)
        first = await held_up(pool, held, 4)
        assert has_room(pool, 1, 1)  # for the other thread
        second = asyncio.create_task(pool.run(4, deadline_s=in_s(1000)))
        await asyncio.sleep(0)
        assert [has_room(pool, 1, seconds) for seconds in (45, 55)] == [False, True]
        held.gate.set()
        await asyncio.gather(first, second)
        pool.close()

    asyncio.run(scenario())


def test_a_pool_learns_how_long_its_work_takes() -> None:
    held = Held()

    def handle(jobs):
        time.sleep(0.1)
        return held(jobs)

    async def scenario() -> None:
        pool = WorkerPool("test", handle, capacity=99, work=int)
        held.gate.set()
        for _ in range(2):
            await pool.run(1, deadline_s=in_s(1000))
        held.gate.clear()
        held.begun.clear()
        task = await held_up(pool, held, 1)
        assert [has_room(pool, 1000, seconds) for seconds in (99, 10_000)] == [False, True]
        held.gate.set()
        await task
        pool.close()

    asyncio.run(scenario())


def test_a_thread_is_free_again_whatever_became_of_its_jobs() -> None:
    gate = threading.Event()

    def handle(jobs):
        gate.wait(30)
        raise ValueError("bad")

    pool = paced(handle, 0.001)

    async def scenario() -> None:
        bad = asyncio.create_task(pool.run(1, deadline_s=in_s(1000)))
        await asyncio.to_thread(wait_until, lambda: pool._free == 0)
        cancelled = asyncio.create_task(pool.run(1, deadline_s=in_s(1000)))
        await asyncio.sleep(0)
        cancelled.cancel()
        gate.set()
        await asyncio.gather(bad, cancelled, return_exceptions=True)
        await asyncio.to_thread(wait_until, lambda: pool._free == 1)
        assert pool._pace.left_s() == 0
        pool.close()

    asyncio.run(scenario())


def test_a_thread_has_what_is_left_of_a_failed_batch(monkeypatch) -> None:
    rooms = []

    def handle(jobs):
        if len(jobs) > 1:
            raise ValueError("one of them is bad")
        return jobs

    pool = paced(handle, 10.0, max_batch=99)
    pool._pace.learn = lambda *_: None  # what is done here takes no time

    def deliver(finished) -> None:
        if threading.current_thread() in pool._threads:  # not of a pool that another test left
            rooms.append(has_room(pool, 1, 15))  # as who gets a result would find it
        deliver_all(finished)

    monkeypatch.setattr(worker, "deliver_all", deliver)

    async def scenario() -> None:
        with pool._changed:  # no thread takes a job before all are there
            tasks = [asyncio.create_task(pool.run(1, deadline_s=in_s(1000))) for _ in range(3)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        pool.close()

    asyncio.run(scenario())
    assert rooms == [False, False, True]


def test_a_handler_that_gives_too_little_fails_its_jobs_and_not_the_thread() -> None:
    async def scenario() -> None:
        pool = WorkerPool("test", lambda jobs: jobs[1:], capacity=9)
        for _ in range(2):
            with pytest.raises(ValueError, match="shorter"):
                await pool.run(1, deadline_s=in_s(10))
        pool.close()

    asyncio.run(scenario())


def test_a_pace_follows_what_was_done_last() -> None:
    pace = Pace()
    assert pace.expected_s(int, 9) == 0
    pace.learn(int, 2, 9.0)  # while it warms up
    assert pace.expected_s(int, 4) == 0
    pace.learn(int, 2, 1.0)
    assert pace.expected_s(int, 4) == pytest.approx(2.0)
    for _ in range(20):
        pace.learn(int, 32, 3.2)
    assert pace.expected_s(int, 10) == pytest.approx(1.0, rel=0.01)
    pace.learn(int, 1, 1000.0)  # the process was stopped, say
    assert pace.expected_s(int, 10) < 1.2
    for _ in range(5):  # jobs that take as long alone as a batch teach little
        pace.learn(int, 1, 0.5)
    assert pace.expected_s(int, 10) < 1.8
    pace.learn(int, 0, 5.0)
    assert pace.expected_s(int, 10) < 1.8


@pytest.mark.parametrize(
    ("unit_s", "cores", "sizes"),
    [
        (0.1, 1, [5, 5, 2]),  # of half a second
        (0.1, 2, [4, 4, 4]),  # as many for each core
        (0.4, 2, [2, 2, 2, 2, 2, 2]),
        (3.0, 8, [8, 4]),  # a core that has nothing to do makes no batch shorter
        (0.0, 1, [12]),
    ],
)
def test_a_batch_is_cut_where_it_would_take_too_long(unit_s, cores, sizes) -> None:
    held = Held()
    held.gate.set()

    async def scenario() -> None:
        pool = paced(held, unit_s, max_batch=99, max_batch_s=0.55, cores=cores)
        pool._pace.learn = lambda *_: None  # what is done here takes no time
        with pool._changed:  # no thread takes a job before all are there
            tasks = [asyncio.create_task(pool.run(1, deadline_s=in_s(1000))) for _ in range(12)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        pool.close()

    asyncio.run(scenario())
    assert [len(batch) for batch in held.batches] == sizes


class PanicError(BaseException):
    """What a library in another language may raise."""


@pytest.mark.parametrize("fault", [PanicError("at the disco"), StopIteration(), SystemExit(1)])
def test_no_fault_ends_the_thread(fault) -> None:
    def handle(jobs):
        if "bad" in jobs:
            raise fault
        return jobs

    async def scenario() -> None:
        pool = WorkerPool("test", handle, capacity=9, max_batch=9)
        far = time.monotonic() + 10
        with pytest.raises(RuntimeError, match=type(fault).__name__):
            await pool.run("bad", deadline_s=far)
        assert (await pool.run("good", deadline_s=far)).value == "good"
        pool.close()

    asyncio.run(scenario())


def test_results_come_a_few_at_a_time_and_others_between_them() -> None:
    async def scenario() -> list[int]:
        gate = threading.Event()

        def handle(jobs: Sequence[int]) -> Sequence[int]:
            gate.wait(30)
            return jobs

        pool = WorkerPool("test", handle, capacity=99, max_batch=99)
        first = asyncio.create_task(pool.run(0, deadline_s=in_s(30)))
        await asyncio.to_thread(wait_until, lambda: pool.longest_s > 0)
        jobs = [asyncio.create_task(pool.run(n, deadline_s=in_s(30))) for n in range(1, 31)]
        await asyncio.sleep(0)
        gate.set()
        seen = []
        while not all(job.done() for job in jobs):
            seen.append(sum(job.done() for job in jobs))
            await asyncio.sleep(0)
        assert [(await job).value for job in (first, *jobs)] == list(range(31))
        pool.close()
        return seen

    counts = [*asyncio.run(scenario()), 30]
    assert max(after - before for before, after in itertools.pairwise(counts)) <= 8
