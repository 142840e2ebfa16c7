"""Constant load for long, with memory and latency of every minute."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.open_loop import Call, Outcome, arrivals, open_loop, summarise

_SAMPLE_S = 5.0
_MIB = 2**20


@dataclass
class _Minutes:
    """Gathers outcomes, and sums them up once a minute, so that they take no memory."""

    server: psutil.Process
    figures: list[dict[str, Any]] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    _outcomes: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)

    async def watch(self) -> None:
        """Until cancelled; a minute's outcomes are summed up one minute later."""
        for number in range(10**9):
            for _ in range(int(60 / _SAMPLE_S)):
                await asyncio.sleep(_SAMPLE_S)
                self.rss_mib.append(round(self.server.memory_info().rss / _MIB, 1))
            self._sum_up(number - 1)

    def _sum_up(self, minute: int) -> None:
        if minute < 0:
            return
        until_s = 60.0 * (minute + 1)
        summary = summarise(self._outcomes, from_s=until_s - 60, to_s=until_s)
        self._outcomes = [one for one in self._outcomes if one.due_s >= until_s]
        entry = {"minute": minute, "rss_mib": self.rss_mib[-1], **asdict(summary)}
        self.figures.append(entry)
        click.echo(json.dumps(entry), err=True)


def run_soak(
    url: str, server: psutil.Process, next_call: Callable[[], Call], *, rate: float, seconds: float
) -> dict[str, Any]:
    """Send calls for so long.

    Returns:
        `drift`: how much memory and latency of the last sixth differ from those of the second
        (the first warms up), as shares; every minute; and all that was not answered with 200.
    """
    minutes = _Minutes(server)

    async def run() -> None:
        watching = asyncio.create_task(minutes.watch())
        due_s = arrivals(rate, seconds, np.random.default_rng(0))
        try:
            await open_loop(url, due_s, next_call, on_outcome=minutes.add)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(run())
    statuses: dict[str, int] = {}
    for entry in minutes.figures:
        for status, count in entry["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    return {
        "rate_per_s": round(rate, 2),
        "seconds": seconds,
        "statuses": statuses,
        "drift": _drifts(minutes.figures),
        "minutes": minutes.figures,
        "rss_mib": minutes.rss_mib,
    }


def _drifts(figures: list[dict[str, Any]]) -> dict[str, float]:
    share = len(figures) // 6
    if not share:
        return {}
    first, last = figures[share : 2 * share], figures[-share:]

    def drift(value: Callable[[dict[str, Any]], float]) -> float:
        return round(float(np.mean([*map(value, last)]) / np.mean([*map(value, first)])) - 1, 4)

    return {
        "rss": drift(lambda entry: entry["rss_mib"]),
        "p50": drift(lambda entry: entry["latency_ms"]["p50"]),
        "p99": drift(lambda entry: entry["latency_ms"]["p99"]),
    }
