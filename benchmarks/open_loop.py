"""Requests that come when they come: Poisson arrivals that do not wait for earlier answers.

A closed loop (send, wait, send) slows down with the server and so hides its queues. Here the time
of each arrival is drawn beforehand, and latency counts from that time, whatever held it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.connections import Connections

Check = Callable[[bytes], str | None]
"""Looks at the body of a good answer; what it says is wrong with it, or None."""

_ANSWER_S = 60.0


@dataclass(frozen=True)
class Call:
    """A request to send.

    Attributes:
        path: of the url.
        body: JSON.
        kind: for the report, such as `text`.
    """

    path: str
    body: bytes
    kind: str


@dataclass(frozen=True)
class Outcome:
    """What became of an arrival.

    Attributes:
        kind: of its call.
        due_s: when it was to be sent, from the start of the run.
        lag_ms: how much later the generator sent it.
        latency_ms: from `due_s` to the end of the answer.
        status: of the answer; 0 if there was none.
        fault: why there was none, or what was wrong with a good one.
    """

    kind: str
    due_s: float
    lag_ms: float
    latency_ms: float
    status: int
    fault: str | None = None

    @property
    def done_s(self) -> float:
        """When the answer was there, from the start of the run."""
        return self.due_s + self.latency_ms / 1000


@dataclass
class Summary:
    """The outcomes of a run in figures; latencies are of the answers with 200, in ms.

    Attributes:
        offered_per_s: arrivals.
        answered_per_s: good answers that were complete within the time measured.
        statuses: how often each came; `0` for no answer.
        latency_ms: percentiles of good answers.
        rejected_ms: percentiles of answers with 429.
        lag_ms: percentiles of how late the generator was.
        faults: what was wrong, counted.
    """

    offered_per_s: float
    answered_per_s: float
    statuses: dict[str, int]
    latency_ms: dict[str, float] = field(default_factory=dict)
    rejected_ms: dict[str, float] = field(default_factory=dict)
    lag_ms: dict[str, float] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)


def arrivals(rate_per_s: float, seconds: float, rng: np.random.Generator) -> list[float]:
    """Times of a Poisson process, ascending, from 0 up to `seconds`."""
    count = int(rate_per_s * seconds + 10 * (rate_per_s * seconds) ** 0.5 + 10)
    times: np.ndarray = np.cumsum(rng.exponential(1 / rate_per_s, count))
    return [float(at) for at in times[times < seconds]]


async def open_loop(
    url: str,
    due_s: Sequence[float],
    next_call: Callable[[], Call],
    *,
    check: Check | None = None,
    on_outcome: Callable[[Outcome], object] | None = None,
    stop: asyncio.Event | None = None,
) -> list[Outcome]:
    """Send a call at each time, and wait for all answers.

    Args:
        url: of the server.
        due_s: times of the arrivals, ascending.
        next_call: makes the call of the next arrival.
        check: for answers with 200.
        on_outcome: told of each outcome, instead of keeping them.
        stop: ends the arrivals early.
    """
    outcomes: list[Outcome] = []
    keep = on_outcome or outcomes.append
    running: set[asyncio.Task[None]] = set()
    connections = Connections(url, answer_s=_ANSWER_S)

    async def send_all() -> None:
        begun_s = time.perf_counter()

        async def send(call: Call, due: float) -> None:
            lag_ms = (time.perf_counter() - begun_s - due) * 1000
            status, fault = await _exchange(connections, call, check)
            latency_ms = (time.perf_counter() - begun_s - due) * 1000
            keep(Outcome(call.kind, due, lag_ms, latency_ms, status, fault))

        for due in due_s:
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - begun_s)))
            if stop is not None and stop.is_set():
                break
            task = asyncio.create_task(send(next_call(), due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    with _libraries_left_alone(), contextlib.closing(connections):
        await send_all()
    return outcomes


@contextlib.contextmanager
def _libraries_left_alone() -> Iterator[None]:
    """To look through all of them for garbage, now and then, would look like waiting."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _exchange(
    connections: Connections, call: Call, check: Check | None
) -> tuple[int, str | None]:
    try:
        status, body = await connections.post(call.path, call.body)
    except ConnectionRefusedError:
        return 0, "refused"
    except OSError as err:
        return 0, type(err).__name__
    fault = check(body) if check is not None and status == 200 else None
    return status, fault


async def one_client(url: str, next_call: Callable[[], Call], count: int) -> list[float]:
    """Latency in ms of calls that are sent one after the other, after some to warm up."""
    times_ms = []
    with contextlib.closing(Connections(url, answer_s=_ANSWER_S)) as connections:
        for number in range(count + 10):
            call = next_call()
            begun_s = time.perf_counter()
            status, _ = await _exchange(connections, call, None)
            if status != 200:
                raise RuntimeError(f"one client alone was answered with {status}")
            if number >= 10:
                times_ms.append((time.perf_counter() - begun_s) * 1000)
    return times_ms


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest; empty for no values."""
    if not values:
        return {}
    p50, p95, p99, largest = np.percentile(np.asarray(values), [50, 95, 99, 100])
    named = {"p50": p50, "p95": p95, "p99": p99, "max": largest}
    return {name: round(float(value), 2) for name, value in named.items()}


def summarise(outcomes: Sequence[Outcome], *, from_s: float, to_s: float) -> Summary:
    """Figures of the arrivals, and of the answers, between two times of a run."""
    within = [one for one in outcomes if from_s <= one.due_s < to_s]
    good = [one for one in within if one.status == 200]
    complete = sum(one.status == 200 and from_s <= one.done_s < to_s for one in outcomes)
    return Summary(
        offered_per_s=round(len(within) / (to_s - from_s), 2),
        answered_per_s=round(complete / (to_s - from_s), 2),
        statuses=_counted(str(one.status) for one in within),
        latency_ms=percentiles([one.latency_ms for one in good]),
        rejected_ms=percentiles([one.latency_ms for one in within if one.status == 429]),
        lag_ms=percentiles([one.lag_ms for one in within]),
        faults=_counted(one.fault for one in within if one.fault),
    )


def _counted(names: Any) -> dict[str, int]:
    return dict(Counter(names).most_common())
