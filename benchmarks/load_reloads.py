"""New versions of a gallery while it is searched, some of them corrupt; then SIGTERM under load."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

from benchmarks.load_queries import text_calls
from benchmarks.open_loop import Outcome, arrivals, open_loop, summarise
from benchmarks.server import served, write_gallery
from tests.service.versions import CORRUPT, publish_copy

GALLERY = "live"
PREFIXES = ("a-", "b-")
"""Ids of the items of one template begin with the first, those of the other with the second."""
_NOTICED_S = 60.0
_AFTER_SIGTERM_S = 6.0
_LONGEST_S = 3600.0


@dataclass
class Answers:
    """What good answers held: for each version named, the beginnings of the ids of its hits."""

    seen: Counter[tuple[str, tuple[str, ...]]] = field(default_factory=Counter)

    def check(self, body: bytes) -> str | None:
        """Note an answer; a wrong number of hits is said at once."""
        answer = json.loads(body)
        prefixes = tuple(sorted({hit["id"][:2] for hit in answer["hits"]}))
        self.seen[answer["version"], prefixes] += 1
        return None if len(answer["hits"]) == 10 else f"{len(answer['hits'])} hits"

    def mixed(self, holds: dict[str, str]) -> list[str]:
        """The answers that were not of one good version."""
        return [
            f"{version}: {prefixes}"
            for version, prefixes in self.seen
            if prefixes != (holds.get(version),)
        ]


class _Publisher:
    """Publishes versions, each when the one before was taken or refused."""

    def __init__(self, url: str, templates: dict[str, Path], live: Path) -> None:
        self.holds: dict[str, str] = {}
        self.faults: list[str] = []
        self._client = httpx.Client(base_url=url, timeout=60)
        self._templates, self._live = templates, live

    def publish(self, number: int, *, bad: bool) -> None:
        prefix = PREFIXES[number % 2]
        refused = self._refused()
        change = CORRUPT[number // 5 % len(CORRUPT)] if bad else {}
        version = publish_copy(self._templates[prefix], self._live, **change)
        if not bad:
            self.holds[version] = prefix
        if number % 3 == 0:  # the others are noticed
            status = self._client.post(f"/v1/galleries/{GALLERY}/reload").status_code
            if status != (409 if bad else 200):
                self.faults.append(f"reload of version {number} was answered with {status}")
        taken: Callable[[], bool] = (
            (lambda: self._refused() > refused) if bad else (lambda: self._serves(version))
        )
        if not _within(_NOTICED_S, taken):
            self.faults.append(f"version {number} was not {'refused' if bad else 'taken'}")

    def _serves(self, version: str) -> bool:
        answer = self._client.get(f"/v1/galleries/{GALLERY}").json()
        return bool(answer["version"] == version)

    def _refused(self) -> int:
        found = re.search(
            rf'^cots_gallery_loads_total{{gallery="{GALLERY}",outcome="refused"}} (\S+)',
            self._client.get("/metrics").text,
            re.MULTILINE,
        )
        return int(float(found[1])) if found else 0


def _within(seconds: float, wanted: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if wanted():
            return True
        time.sleep(0.05)
    return False


def run_reloads(
    folder: Path, checkpoint: str, *, items: int, rate: float, versions: int
) -> dict[str, Any]:
    """Publish `versions`, each fifth corrupt, while `rate` searches come per second.

    Returns:
        the figures of the searches until all versions were seen, and of those around SIGTERM;
        `failures` lists what must not be: answers other than 200, mixed hits, versions that were
        not noticed, requests without an answer.
    """
    templates = {
        prefix: write_gallery(folder / "templates", prefix, items, checkpoint, prefix=prefix)
        for prefix in PREFIXES
    }
    live = folder / "galleries" / GALLERY
    first = publish_copy(templates[PREFIXES[1]], live)
    environment = {**os.environ, "COTS_RELOAD_INTERVAL_S": "0.2"}
    answers, outcomes, marks = Answers(), list[Outcome](), list[float]()
    with served(live.parent, checkpoint, folder / "server.log", environment=environment) as (
        url,
        server,
    ):
        publisher = _Publisher(url, templates, live)
        publisher.holds[first] = PREFIXES[1]

        def publish_all() -> None:
            for number in range(versions):
                publisher.publish(number, bad=number % 5 == 2)
                click.echo(f"version {number + 1} of {versions}", err=True)

        async def run() -> None:
            stop, begun_s = asyncio.Event(), time.perf_counter()
            due_s = arrivals(rate, _LONGEST_S, np.random.default_rng(0))
            calls = text_calls(GALLERY, 1)
            load = asyncio.create_task(
                open_loop(
                    url, due_s, calls, check=answers.check, on_outcome=outcomes.append, stop=stop
                )
            )
            await asyncio.to_thread(publish_all)
            marks.append(time.perf_counter() - begun_s)
            server.terminate()
            await asyncio.sleep(_AFTER_SIGTERM_S)
            stop.set()
            await load
            marks.append(time.perf_counter() - begun_s)

        asyncio.run(run())
        exit_status = server.wait(60)
    before = summarise(outcomes, from_s=0, to_s=marks[0])
    after = summarise(outcomes, from_s=marks[0], to_s=marks[1])
    failures = [*publisher.faults, *answers.mixed(publisher.holds)]
    failures += [f"{count} x {fault}" for fault, count in before.faults.items()]
    statuses = Counter(before.statuses) + Counter(after.statuses)
    failures += [
        f"{n} answers {status}" for status, n in statuses.items() if status not in ("200", "0")
    ]
    failures += [
        f"{count} x {fault} after SIGTERM"
        for fault, count in after.faults.items()
        if fault != "refused"
    ]
    if exit_status:
        failures.append(f"the server ended with {exit_status}")
    return {
        "versions": versions,
        "corrupt": sum(number % 5 == 2 for number in range(versions)),
        "rate_per_s": rate,
        "seconds": round(marks[0], 1),
        "under_reloads": asdict(before),
        "after_sigterm": asdict(after),
        "exit_status": exit_status,
        "failures": failures,
    }
