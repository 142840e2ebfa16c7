"""`cots serve --workers`: one address, one view of the figures, replacement, a graceful end."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.worker_environment import spin_little, threads_per_worker
from service.worker_place import pause_s
from tests.service.conftest import wait_until
from tests.service.test_serve_command import COMMAND, Process, process

pytestmark = pytest.mark.slow
SEARCH = "/v1/galleries/pets/search"


def logged(running: Process, message: str) -> list[dict[str, object]]:
    entries = [json.loads(line) for line in list(running.lines) if line.startswith("{")]
    return [entry for entry in entries if entry["message"].startswith(message)]


def arguments(root: Path, checkpoint: Path, workers: int) -> list[object]:
    given = ["serve", "--galleries", root, "--checkpoint", checkpoint, "--port", 0]
    return [*given, "--workers", workers, "--device", "cpu"]


def scrape(url: str) -> dict[str, float]:
    """Sums over all labels but `worker`, which stays in the name."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            worker = sample.labels.get("worker")
            name = sample.name if worker is None else f"{sample.name}:{worker}"
            sums[name] = sums.get(name, 0.0) + sample.value
    return sums


def test_threads_hardly_spin_unless_the_user_says_otherwise(monkeypatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    spin_little()
    assert os.environ["GOMP_SPINCOUNT"] == "3000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    spin_little()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    spin_little()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.fixture(scope="module")
def two(root: Path, checkpoint: Path) -> Iterator[tuple[Process, str]]:
    with process(COMMAND, *arguments(root, checkpoint, 2)) as running:
        url = running.url()
        wait_until(lambda: len(logged(running, "worker serves")) == 2, seconds=60)
        wait_until(lambda: scrape(url).get("cots_ready_workers") == 2, seconds=20)
        yield running, url


def test_openmp_is_told_before_it_is_loaded(two) -> None:
    script = (
        "import sys, cots_cli.serve, service.worker_environment; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'faiss')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    running, _ = two
    workers = psutil.Process(running.popen.pid).children()
    told = [worker.environ().get("GOMP_SPINCOUNT") for worker in workers]
    assert told.count(os.environ.get("GOMP_SPINCOUNT", "3000")) >= 2


def test_every_scrape_tells_the_figures_of_all_workers(two) -> None:
    running, url = two
    for _ in range(20):  # a new connection each, so that both workers get some
        assert httpx.get(f"{url}/v1/galleries").status_code == 200
    answered_by = {entry.get("worker") for entry in logged(running, "request")}
    assert answered_by == {0, 1}
    totals = [scrape(url)["cots_requests_total"] for _ in range(8)]
    assert totals == sorted(totals)
    assert totals[0] >= 20
    samples = scrape(url)
    assert {"process_resident_memory_bytes:0", "process_resident_memory_bytes:1"} <= set(samples)
    assert samples["cots_gallery_up"] == 2  # both galleries, told once


def test_worker_that_dies_is_replaced_and_counted(two) -> None:
    running, url = two
    before = len(logged(running, "worker started"))
    [victim] = {e["worker_pid"] for e in logged(running, "worker started") if e["worker"] == 1}
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(logged(running, "worker started")) == before + 1, seconds=20)
    assert httpx.get(f"{url}/livez").status_code == 200  # the other one, meanwhile
    [ended] = logged(running, "worker ended; it will be started again")
    assert (ended["worker"], ended["exit"], ended["pause_s"]) == (1, -signal.SIGKILL, 0.5)
    wait_until(lambda: scrape(url).get("cots_ready_workers") == 2, seconds=60)
    assert scrape(url)["cots_worker_restarts_total"] == 1
    assert scrape(url)["cots_requests_total"] >= 20  # those of the dead one too


def test_worker_that_is_told_to_end_alone_leaves_the_address_to_the_others(two) -> None:
    running, url = two
    before = len(logged(running, "worker started"))
    [*_, victim] = [e["worker_pid"] for e in logged(running, "worker started") if e["worker"] == 0]
    os.kill(victim, signal.SIGTERM)
    wait_until(lambda: len(logged(running, "worker started")) == before + 1, seconds=20)
    for _ in range(5):  # connections made now, while there is one worker and when there are two
        assert httpx.get(f"{url}/livez", timeout=5).status_code == 200
    wait_until(lambda: scrape(url).get("cots_ready_workers") == 2, seconds=60)
    assert logged(running, "worker ended; it will be started again")[-1]["exit"] == 0


def test_workers_end_with_their_parent(root, checkpoint) -> None:
    with process(COMMAND, *arguments(root, checkpoint, 2)) as running:
        url = running.url()
        pids = [int(str(entry["worker_pid"])) for entry in logged(running, "worker started")]
        assert len(pids) == 2
        running.popen.kill()
        wait_until(lambda: not any(is_running(pid) for pid in pids), seconds=30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/livez")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@dataclass
class Load:
    """Clients that ask without pause, half of them on connections that stay open."""

    url: str
    clients: int = 6
    statuses: list[int] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def start(self) -> list[threading.Thread]:
        threads = [
            threading.Thread(target=self._ask, args=(number,), daemon=True)
            for number in range(self.clients)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _ask(self, client_number: int) -> None:
        end_s = time.monotonic() + 60
        limits = httpx.Limits(max_keepalive_connections=1 - client_number % 2)
        with httpx.Client(base_url=self.url, limits=limits, timeout=30) as client:
            for number in itertools.count():
                assert time.monotonic() < end_s
                request_id = f"{client_number}-{number}"
                body, headers = {"query": "a dog in the snow", "k": 3}, {"X-Request-Id": request_id}
                try:
                    answer = client.post(SEARCH, json=body, headers=headers)
                except httpx.ConnectError:  # nobody listens any more
                    return
                except httpx.TransportError:
                    self.dropped.append(request_id)
                    return
                self.statuses.append(answer.status_code)


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_drops_no_request(root, checkpoint, workers) -> None:
    with process(COMMAND, *arguments(root, checkpoint, workers)) as running:
        url = running.url()
        if workers > 1:
            wait_until(lambda: len(logged(running, "worker serves")) == 2, seconds=60)
        load = Load(url)
        threads = load.start()
        wait_until(lambda: len(load.statuses) > 50, seconds=60)
        begun_s = time.monotonic()
        running.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert running.end() == 0
        assert time.monotonic() - begun_s < 20
    assert load.dropped == []
    assert set(load.statuses) == {200}


def test_what_no_worker_can_load_is_said_once_with_status_2(root, tmp_path) -> None:
    checkpoint = tmp_path / "not a checkpoint"
    checkpoint.mkdir()
    with process(COMMAND, *arguments(root, checkpoint, 2)) as running:
        assert running.end() == 2
        said = [line for line in running.lines if not line.startswith("{")]
    assert len(said) == 1, said
    assert said[0].startswith("Error: ")
    assert "not a checkpoint" in said[0]


def test_pauses_grow_up_to_half_a_minute() -> None:
    assert [pause_s(failures) for failures in (1, 2, 3, 7, 50)] == [0.5, 1.0, 2.0, 30.0, 30.0]


def test_workers_share_the_cores() -> None:
    assert threads_per_worker(2, 8) == 4
    assert threads_per_worker(3, 8) == 2
    assert threads_per_worker(4, 2) == 1
