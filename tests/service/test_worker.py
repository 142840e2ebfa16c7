"""Threads behind a queue: order, batches, deadlines, and what happens when they hang."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from service.readiness import Readiness
from service.state import CallPool
from service.worker import DeadlineError, QueueFullError, WorkerPool


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
        readiness = Readiness([pool], interval_s=60.0, max_age_s=0.3)
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
