"""Workers that do not answer any more: told from busy ones, ended and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from cots_model.errors import ConfigError
from service.heartbeat import Beat, Heartbeat, Pulse, with_heartbeat
from service.settings import Settings
from tests.service.conftest import wait_until
from tests.service.test_serve_command import Process, process
from tests.service.test_workers import logged, scrape

SILENT_S = 1.5
WATCHED = f"""
import sys
from pathlib import Path
from service.logs import configure_logging
from service.server import bind
from service.settings import Settings
from service.workers import run_workers
from tests.service.wedged import serve_wedged

settings = Settings.load(galleries=Path(sys.argv[1]), checkpoint=sys.argv[2], workers=2,
                         device="cpu", drain_s=0, worker_heartbeat_s=0.1,
                         worker_silent_s={SILENT_S})
configure_logging(settings.log_level)
say = lambda url: print("at", url, file=sys.stderr, flush=True)
run_workers(settings, bind(settings.host, 0), say, target=serve_wedged)
"""


def pulse(**options: float) -> Pulse:
    return Pulse(**{"interval_s": 2.0, "limit_s": 10.0, "now_s": 0.0, **options})


def test_nothing_is_expected_before_the_first_beat() -> None:
    watched = pulse()
    assert not any(watched.is_silent(now_s) for now_s in range(0, 1000, 2))


def test_silence_counts_from_the_last_beat() -> None:
    watched = pulse()
    watched.beat()
    assert [now_s for now_s in range(0, 13, 2) if watched.is_silent(now_s)] == [12]
    watched.beat()
    assert not watched.is_silent(14)


def test_time_in_which_nobody_looked_is_not_silence() -> None:
    watched = pulse()
    watched.beat()
    assert not watched.is_silent(2)
    assert not watched.is_silent(100_000)  # the machine slept
    assert [now_s for now_s in range(100_002, 100_010, 2) if watched.is_silent(now_s)] == [100_008]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever)
    thread.start()
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join(10)
    running.close()


def test_heart_beats_while_the_loop_runs_and_not_while_it_is_held(loop) -> None:
    beats: queue.Queue[Beat] = queue.Queue()
    held, gate = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        gate.wait(30)

    with Heartbeat(loop, beats.put, interval_s=0.01):
        for _ in range(3):
            assert beats.get(timeout=10) == Beat()
        loop.call_soon_threadsafe(hold)
        assert held.wait(10)
        with contextlib.suppress(queue.Empty):  # answered before, and told now
            while True:
                beats.get(timeout=0.2)
        with pytest.raises(queue.Empty):
            beats.get(timeout=0.2)
        gate.set()
        assert beats.get(timeout=10) == Beat()


@pytest.mark.parametrize("parent_is_gone", [False, True])
def test_first_beat_comes_before_an_application_can_be_ready(parent_is_gone) -> None:
    happened: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        happened.append("starts")
        yield
        after_the_last = happened.count("beat")  # and one more may be on its way
        await asyncio.sleep(0.1)
        assert happened.count("beat") <= after_the_last + 1

    def send(beat: Beat) -> None:
        if parent_is_gone:
            raise BrokenPipeError
        happened.append("beat")

    async def live() -> None:
        app = FastAPI(lifespan=lifespan)
        with_heartbeat(app, send, interval_s=0.01)
        async with app.router.lifespan_context(app):
            for _ in range(1000):
                if parent_is_gone or happened.count("beat") > 2:
                    break
                await asyncio.sleep(0.01)

    asyncio.run(live())
    if parent_is_gone:
        assert happened == ["starts"]
    else:
        assert happened[:2] == ["beat", "starts"]
        assert happened.count("beat") > 2


def test_limit_that_leaves_no_room_for_a_beat_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"worker_silent_s \(3\) is too short"):
        Settings.load(worker_silent_s=3, worker_heartbeat_s=2)


@pytest.fixture(scope="module")
def watched(root: Path, checkpoint: Path) -> Iterator[tuple[Process, str]]:
    with process(WATCHED, root, checkpoint) as running:
        url = running.url()
        wait_until(lambda: len(logged(running, "worker serves")) == 2, seconds=60)
        wait_until(lambda: scrape(url).get("cots_ready_workers") == 2, seconds=20)
        yield running, url


def replaced(running: Process, url: str, before: dict[str, float]) -> None:
    """Wait until one more worker was ended for its silence, and another one serves."""
    silent, restarts = "cots_silent_workers_total", "cots_worker_restarts_total"
    wait_until(lambda: scrape(url)[restarts] == before[restarts] + 1, seconds=30)
    wait_until(lambda: scrape(url)["cots_ready_workers"] == 2, seconds=100)
    assert scrape(url)[silent] == before[silent] + 1


@pytest.mark.slow
def test_worker_that_is_busy_is_left_alone(watched) -> None:
    running, url = watched
    answer = httpx.get(f"{url}/busy", params={"seconds": 2 * SILENT_S}, timeout=60)
    assert answer.status_code == 200
    assert logged(running, "worker is silent") == []


@pytest.mark.slow
def test_worker_whose_event_loop_hangs_is_killed_and_replaced(watched) -> None:
    running, url = watched
    before = scrape(url)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/wedge", timeout=30)
    [silent] = logged(running, "worker is silent; it is told to end")
    [killed] = logged(running, "worker did not end; it is killed")
    assert silent["worker_pid"] == killed["worker_pid"]
    replaced(running, url, before)


@pytest.mark.slow
def test_worker_that_answers_again_finishes_what_it_has_begun(watched) -> None:
    running, url = watched
    before, killed = scrape(url), len(logged(running, "worker did not end; it is killed"))
    answer = httpx.get(f"{url}/wedge", params={"seconds": SILENT_S + 1}, timeout=30)
    assert answer.status_code == 200
    replaced(running, url, before)
    assert len(logged(running, "worker did not end; it is killed")) == killed


@pytest.mark.slow
def test_worker_that_is_stopped_is_replaced(watched) -> None:
    running, url = watched
    before, started = scrape(url), logged(running, "worker started")
    [*_, victim] = [int(str(e["worker_pid"])) for e in started if e["worker"] == 1]
    os.kill(victim, signal.SIGSTOP)
    replaced(running, url, before)
