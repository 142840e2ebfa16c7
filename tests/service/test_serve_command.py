"""`cots serve` as a process: start, one-line refusals, SIGTERM, and the hits of `cots search`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from cots_cli.search import command as search_command
from cots_client import Client
from cots_model.errors import CheckpointError
from service.server import address_of, bind
from service.settings import Settings
from service.state import Resources
from service.waiting_room import WaitingRoom
from tests.service.conftest import wait_until
from tests.service.versions import publish_copy

REPOSITORY = Path(__file__).parents[2]
COMMAND = "from cots_cli.main import main; main()"
# The same server, with a model that takes its time: for signals that come while it works.
SLOW = """
import sys, time
from pathlib import Path
from cots_model.encoder import Encoder
from service.app import create_app
from service.server import bind, leave, serve
from service.settings import Settings
from service.state import Resources

class SlowEncoder(Encoder):
    def read_texts(self, texts, *, batch_size=64):
        if "slow" in texts:
            end_s = time.monotonic() + SLOW_S
            while time.monotonic() < end_s:  # in torch, where a thread must not be at the end
                super().read_texts(["a dog"])
        return super().read_texts(texts, batch_size=batch_size)

settings = Settings.load(galleries=Path(sys.argv[1]), checkpoint=sys.argv[2], port=0,
                         drain_s=0.6, grace_s=GRACE_S, device="cpu")
loaded = Resources.load(settings)
encoder = SlowEncoder(loaded.encoder.model, loaded.encoder.preprocess, loaded.encoder.fingerprint)
app = create_app(settings, Resources(encoder, loaded.registry))
listener = bind(settings.host, 0)
say = lambda url: print("at", url, file=sys.stderr, flush=True)
if not serve(app, settings, listener, on_start=say):
    leave()
"""


class Process:
    """A Python process with its standard error collected."""

    def __init__(self, code: str, *arguments: object) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=REPOSITORY,
        )
        self.lines: list[str] = []
        self.may_read = threading.Event()
        self.may_read.set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in iter(self.popen.stderr.readline, ""):
            self.lines.append(line)
            self.may_read.wait()

    def url(self) -> str:
        def found() -> list[str]:
            return [word for line in self.lines for word in line.split() if "http://" in word]

        wait_until(lambda: found() or self.popen.poll() is not None, seconds=40)
        assert found(), self.lines
        wait_until(lambda: answers(found()[0]), seconds=40)
        return found()[0]

    def end(self) -> int:
        status = self.popen.wait(30)
        self._reader.join(5)
        return status


def answers(url: str) -> bool:
    with Client(url) as client:
        return client.is_live()


@contextlib.contextmanager
def process(code: str, *arguments: object) -> Iterator[Process]:
    started = Process(code, *arguments)
    try:
        yield started
    finally:
        if started.popen.poll() is None:
            started.popen.kill()
        started.may_read.set()
        started.end()
        assert started.popen.stderr is not None
        started.popen.stderr.close()


@pytest.fixture(scope="module")
def served(
    root: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, str]]:
    config = tmp_path_factory.mktemp("config") / "serve.yaml"
    config.write_text("drain_s: 10\n", "utf-8")
    arguments = ("--galleries", root, "--checkpoint", checkpoint, "--port", 0, "--config", config)
    with process(COMMAND, "serve", *arguments) as running:
        yield running, running.url()


def test_serve_gives_the_hits_of_cots_search(served, root, checkpoint) -> None:
    _, url = served
    for words in ("a dog in the snow", "red"):
        arguments = ["--gallery", str(root / "pets"), "--checkpoint", str(checkpoint), "--json"]
        done = CliRunner().invoke(search_command, [*arguments, words], catch_exceptions=False)
        offline = json.loads(done.stdout)["hits"]
        with Client(url) as client:
            online = client.search("pets", words).hits
        assert [hit.id for hit in online] == [hit["id"] for hit in offline]
        assert [hit.thumbnail for hit in online] == [hit["thumbnail"] for hit in offline]
        expected = pytest.approx([hit["score"] for hit in offline], abs=1e-6)
        assert [hit.score for hit in online] == expected


def test_serve_logs_json_lines(served) -> None:
    running, url = served
    httpx.get(f"{url}/v1/galleries")
    wait_until(lambda: any('"/v1/galleries"' in line for line in running.lines))
    logged = [json.loads(line) for line in running.lines if line.startswith("{")]
    request = next(entry for entry in logged if entry.get("path") == "/v1/galleries")
    assert (request["status"], request["method"], request["level"]) == (200, "GET", "info")


def test_a_log_that_nobody_reads_holds_up_no_answer_and_no_end(root, checkpoint) -> None:
    arguments = ("--galleries", root, "--checkpoint", checkpoint, "--port", 0)
    with process(COMMAND, "serve", *arguments) as running:
        url = running.url()
        running.may_read.clear()
        long_line = "a" * 4_000  # 64 KiB fit into the pipe
        with httpx.Client(base_url=url, timeout=10) as client:
            answers = [client.get(f"/v1/galleries/{long_line}").status_code for _ in range(100)]
        assert answers == [404] * 100
        begun_s = time.monotonic()
        running.popen.send_signal(signal.SIGTERM)
        assert running.popen.wait(20) == 0
        assert time.monotonic() - begun_s < 10


def run(*arguments: object) -> tuple[int, str]:
    with process(COMMAND, "serve", *arguments) as running:
        status = running.end()
        return status, "".join(running.lines)


def test_serve_says_in_one_line_that_the_port_is_taken(root, checkpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = run("--galleries", root, "--checkpoint", checkpoint, "--port", port)
    assert status == 1
    assert said.count("\n") == 1
    assert str(port) in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--galleries", "{root}/pets"), "is itself a gallery"),
        (("--galleries", "{root}/none"), "is not a folder"),
        (("--galleries", "{root}/pets/versions"), "holds no gallery"),
        (("--galleries", "{root}", "--host", "0.0.0.0"), "--allow-public"),
    ],
)
def test_serve_refuses_in_one_line_with_status_2(root, arguments, words) -> None:
    filled = [argument.format(root=root) for argument in arguments]
    status, said = run(*filled, "--port", 0)
    assert status == 2, said
    assert said.count("\n") == 1
    assert words in said


def test_unusable_checkpoint_is_refused_before_serving(root) -> None:
    with pytest.raises(CheckpointError):
        Resources.load(Settings(galleries=root, checkpoint=str(root)))


def in_flight(url: str) -> tuple[threading.Thread, list[httpx.Response]]:
    answered: list[httpx.Response] = []

    def ask() -> None:
        path = f"{url}/v1/galleries/pets/search"
        with contextlib.suppress(httpx.TransportError):
            answered.append(httpx.post(path, json={"query": "slow"}, timeout=30))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answered


def test_sigterm_finishes_what_is_in_flight_and_exits_0(root, checkpoint) -> None:
    code = SLOW.replace("SLOW_S", "2.0").replace("GRACE_S", "10")
    with process(code, root, checkpoint) as running:
        url = running.url()
        thread, answered = in_flight(url)
        time.sleep(0.5)
        begun_s = time.monotonic()
        running.popen.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with Client(url) as client:
            assert client.readiness().reasons == ("shutting down",)
        thread.join(20)
        assert [answer.status_code for answer in answered] == [200]
        assert running.end() == 0
        assert time.monotonic() - begun_s < 10


def test_sigterm_exits_0_within_the_grace_time_when_work_hangs(root, checkpoint) -> None:
    code = SLOW.replace("SLOW_S", "60").replace("GRACE_S", "3")
    with process(code, root, checkpoint) as running:
        thread, _ = in_flight(running.url())
        time.sleep(0.5)
        begun_s = time.monotonic()
        running.popen.send_signal(signal.SIGTERM)
        assert running.end() == 0
        assert time.monotonic() - begun_s < 3 + 1.5  # a busy machine ends a process slowly
        thread.join(20)


STUCK = """
import service.content

def stuck(stream, wanted):
    yield b"a"
    print("reading", file=sys.stderr, flush=True)
    time.sleep(3600)  # as a share that does not answer

service.content._chunks = stuck
"""
WEDGED = """
@app.get("/wedge")
async def wedge():
    print("reading", file=sys.stderr, flush=True)
    while True:
        time.sleep(1)  # the event loop does nothing else

"""


def get_and_forget(url: str) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.get(url, timeout=20)


BEGINS, SERVES = "settings = Settings.load", "listener = bind"


@pytest.mark.parametrize(
    ("fault", "before", "path"),
    [(STUCK, BEGINS, "/v1/galleries/pets/items/cat.jpg/content"), (WEDGED, SERVES, "/wedge")],
    ids=["read", "loop"],
)
def test_what_never_ends_does_not_hold_up_the_end(root, checkpoint, fault, before, path) -> None:
    code = SLOW.replace("SLOW_S", "0").replace("GRACE_S", "3").replace(before, fault + before)
    with process(code, root, checkpoint) as running:
        url = running.url()
        thread = threading.Thread(target=get_and_forget, args=(url + path,))
        thread.start()
        wait_until(lambda: any("reading" in line for line in running.lines))
        begun_s = time.monotonic()
        running.popen.send_signal(signal.SIGTERM)
        assert running.end() == 0
        assert time.monotonic() - begun_s < 3 + 1.5
        thread.join(20)


def test_second_sigterm_does_not_wait(served) -> None:
    running, url = served
    begun_s = time.monotonic()
    running.popen.send_signal(signal.SIGTERM)
    wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
    running.popen.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert time.monotonic() - begun_s < 8


def test_a_server_ends_without_a_word_that_is_no_log(root, checkpoint) -> None:
    arguments = ("--galleries", root, "--checkpoint", checkpoint, "--port", 0)
    with process(COMMAND, "serve", *arguments) as running:
        running.url()
        said = [line for line in running.lines if not line.startswith("{")]
        running.popen.send_signal(signal.SIGINT)
        assert running.end() == 0
        assert [line for line in running.lines if not line.startswith("{")] == said


SEVERAL_CORES = f"import torch; torch.set_num_threads(2); {COMMAND}"


def test_a_server_that_encoded_on_several_cores_ends_by_itself(root, checkpoint) -> None:
    arguments = ("--galleries", root, "--checkpoint", checkpoint, "--port", 0, "--device", "cpu")
    with process(SEVERAL_CORES, "serve", *arguments) as running:
        url = running.url()
        body = {"queries": [f"text {number}" for number in range(40)]}
        assert httpx.post(f"{url}/v1/galleries/pets/search", json=body).status_code == 200
        assert httpx.get(f"{url}/v1/galleries/pets/items/cat.jpg/content").status_code == 200
        running.popen.send_signal(signal.SIGTERM)
        assert running.end() == 0
        assert not [line for line in running.lines if "still at work" in line]


LOADING = """
import signal
import sys
import torch
from cots_model.encoder import Encoder
from cots_cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with &

def load(*args, **options):
    print("loading", file=sys.stderr, flush=True)
    while True:
        torch.randn(200, 200) @ torch.randn(200, 200)

Encoder.load = load
main()
"""


def test_a_server_that_loads_is_alive_and_not_ready(root, checkpoint, free_port) -> None:
    arguments = ("--galleries", root, "--checkpoint", checkpoint, "--port", free_port)
    with process(LOADING, "serve", *arguments) as running:
        wait_until(lambda: any("loading" in line for line in running.lines), seconds=60)
        url = f"http://127.0.0.1:{free_port}"
        wait_until(lambda: httpx.get(f"{url}/livez").status_code == 200)
        ready = httpx.get(f"{url}/readyz")
        assert ready.status_code == 503
        assert "loading" in ready.json()["reasons"][0]
        other = httpx.post(f"{url}/v1/galleries/pets/search", json={"query": "a dog"})
        request_id = other.headers["x-request-id"]
        wait_until(lambda: any(request_id in line for line in running.lines))
        assert other.headers["x-content-type-options"] == "nosniff"
        assert (other.status_code, other.json()["error"]["code"]) == (503, "not_ready")
        assert other.headers["retry-after"] == "1"
        assert httpx.head(f"{url}/livez").content == b""
        running.popen.kill()
        running.popen.wait(30)


def test_the_parent_answers_until_a_worker_does(root, checkpoint, free_port) -> None:
    arguments = ("--galleries", root, "--checkpoint", checkpoint, "--port", free_port)
    with process(COMMAND, "serve", *arguments, "--workers", 2, "--device", "cpu") as running:
        url = f"http://127.0.0.1:{free_port}"
        told: list[httpx.Response] = []

        def is_ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                told.append(httpx.get(f"{url}/readyz", timeout=60))
            return bool(told) and told[-1].status_code == 200

        wait_until(is_ready, seconds=100)
        assert told[0].status_code == 503
        assert "loading" in told[0].json()["reasons"][0]
        for _ in range(20):
            assert httpx.get(f"{url}/v1/galleries").status_code == 200
        running.popen.send_signal(signal.SIGTERM)
        assert running.end() == 0


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_ctrl_c_does_not_wait_for_the_model(root, checkpoint) -> None:
    arguments = ("--galleries", root, "--checkpoint", checkpoint, "--port", 0)
    with process(LOADING, "serve", *arguments) as running:
        wait_until(lambda: any("loading" in line for line in running.lines), seconds=60)
        running.popen.send_signal(signal.SIGINT)
        assert running.end() == 130
        assert any("interrupted" in line for line in running.lines)


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_does_not_wait_for_the_model(root, checkpoint, workers) -> None:
    arguments = ("--galleries", root, "--checkpoint", checkpoint, "--port", 0)
    with process(LOADING, "serve", *arguments, "--workers", workers) as running:
        wait_until(lambda: any("load" in line for line in running.lines), seconds=60)
        running.popen.send_signal(signal.SIGTERM)
        assert running.end() == 0
        assert not any("Traceback" in line for line in running.lines)
        assert any("SIGTERM" in line for line in running.lines)


def test_who_is_connected_when_loading_ends_is_answered(caplog) -> None:
    body = b"a" * 3_000_000
    head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with caplog.at_level(logging.INFO), bind("127.0.0.1", 0) as listener:
        room = WaitingRoom(listener)
        url = httpx.URL(address_of(listener))
        wait_until(lambda: httpx.get(f"{url}/livez").status_code == 200)
        with socket.create_connection((url.host, url.port), timeout=10) as early:
            early.sendall(head[:9])
            time.sleep(0.2)
            room.close()
            with socket.create_connection((url.host, url.port), timeout=10):
                next_one, _ = listener.accept()  # the address is free for another server
                next_one.close()
            time.sleep(0.5)
            early.sendall(head[9:] + body)
            answer = b"".join(iter(lambda: early.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"not_ready"' in answer
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="mappings are read in /proc")
def test_the_version_loaded_at_the_start_is_let_go_when_another_is_taken(
    root, checkpoint, tmp_path
) -> None:
    first = publish_copy(root / "shards", tmp_path / "g" / "live")
    arguments = ("--galleries", tmp_path / "g", "--checkpoint", checkpoint, "--port", 0)
    with process(COMMAND, "serve", *arguments) as running, Client(running.url()) as client:
        maps = Path(f"/proc/{running.popen.pid}/maps")
        client.search("live", "a dog")
        assert first in maps.read_text("utf-8")
        second = publish_copy(root / "shards", tmp_path / "g" / "live")
        assert client.reload("live").version == second
        client.search("live", "a cat")
        wait_until(lambda: first not in maps.read_text("utf-8"))
        assert second in maps.read_text("utf-8")


@pytest.mark.parametrize("waits", [False, True])
def test_a_waiting_room_lets_go_of_the_address(waits) -> None:
    with bind("127.0.0.1", 0) as listener:
        url = address_of(listener)
        with contextlib.closing(WaitingRoom(listener)):
            if waits:
                wait_until(lambda: httpx.get(f"{url}/livez").status_code == 200)
        assert listener.fileno() >= 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/livez", timeout=5)
