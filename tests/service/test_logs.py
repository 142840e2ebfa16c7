"""Logs: one JSON line per request with its route and times, and nothing that a client confided."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.logs import JsonFormatter, LineWriter, current_request_id
from tests.service.conftest import GatedEncoder, Running, picture, wait_until

SEARCH = "/v1/galleries/pets/search"
Lines = list[dict[str, Any]]


class Written:
    """What the formatter wrote, line by line."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    def lines(self) -> Lines:
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in lines if not line["logger"].startswith("http")]  # our own client

    def of_request(self, request_id: str) -> Lines:
        return [line for line in self.lines() if line.get("request_id") == request_id]


@pytest.fixture
def written() -> Iterator[Written]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(worker=3))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield Written(stream)
    root.removeHandler(handler)
    root.setLevel(level)


def request_line(written: Written, request_id: str) -> dict[str, Any]:
    def found() -> Lines:
        return [line for line in written.of_request(request_id) if line["message"] == "request"]

    wait_until(found)  # logged after the answer is sent
    [line] = found()
    return line


def test_request_is_one_line_with_route_status_and_stages(server: Running, written) -> None:
    files = {"file": ("secret.jpg", picture(4))}
    headers = {"x-request-id": "upload-1"}
    answer = server.client.post(f"{SEARCH}/upload", files=files, headers=headers)
    line = request_line(written, "upload-1")
    assert line["route"] == "/v1/galleries/{g}/search/upload"
    assert (line["method"], line["status"], line["worker"]) == ("POST", 200, 3)
    took_ms = answer.json()["took_ms"]
    assert line["queue_ms"] == pytest.approx(took_ms["queue"], abs=0.01)
    assert line["decode_ms"] + line["encode_ms"] == pytest.approx(took_ms["encode"], abs=0.01)
    assert line["search_ms"] == pytest.approx(took_ms["search"], abs=0.01)
    assert line["duration_ms"] >= took_ms["total"]
    assert "code" not in line


def test_error_is_logged_with_its_code(server: Running, written) -> None:
    headers = {"x-request-id": "error-1"}
    server.client.get("/v1/galleries/none", headers=headers)
    line = request_line(written, "error-1")
    assert (line["status"], line["code"]) == (404, "gallery_not_found")
    assert line["route"] == "/v1/galleries/{g}"
    assert "search_ms" not in line


def test_words_query_strings_headers_and_keys_are_in_no_line(serve, written) -> None:
    key = "hush-hush-key"
    server = serve(api_key_sha256=(hashlib.sha256(key.encode()).hexdigest(),))
    headers = {"authorization": f"Bearer {key}", "x-request-id": "secret-1"}
    server.client.post(SEARCH, json={"query": "confidential words"}, headers=headers)
    server.client.get("/livez?token=confidential", headers=headers)
    server.client.post(SEARCH, json={"confidential": 1}, headers=headers)
    wait_until(lambda: len(written.of_request("secret-1")) >= 3)
    logged = json.dumps(written.lines())
    assert "confidential" not in logged
    assert key not in logged


def test_fault_is_logged_under_the_id_of_its_request(serve, encoder, written) -> None:
    class Faulty(GatedEncoder):
        def read_texts(self, texts, *, batch_size=64):
            if "boom" in texts:
                raise RuntimeError("what broke")
            return super().read_texts(texts)

    server = serve(model=Faulty(encoder), probe_interval_s=60.0)
    headers = {"x-request-id": "fault-1"}
    assert server.client.post(SEARCH, json={"query": "boom"}, headers=headers).status_code == 500
    line = request_line(written, "fault-1")
    assert (line["status"], line["code"]) == (500, "internal_error")
    [trace] = [line for line in written.of_request("fault-1") if "exception" in line]
    assert "what broke" in trace["exception"]
    assert trace["level"] == "error"


def test_lines_stay_lines_whatever_is_asked_for(server: Running, written) -> None:
    headers = {"x-request-id": "lines-1"}
    server.client.get("/v1/galleries/a%0A%22b%E2%98%83%00", headers=headers)
    line = request_line(written, "lines-1")
    assert line["path"] == '/v1/galleries/a\n"b☃\0'


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reads, writes = os.pipe()
    yield reads, writes
    for end in (reads, writes):
        os.close(end)


@contextlib.contextmanager
def alone(lines: LineWriter) -> Iterator[logging.Logger]:
    """A logger that writes there and nowhere else."""
    logger = logging.getLogger("tests.writer")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    yield logger
    logger.removeHandler(lines)


@pytest.fixture
def writer(pipe: tuple[int, int]) -> Iterator[tuple[LineWriter, logging.Logger]]:
    lines = LineWriter(most_bytes=400_000, descriptor=pipe[1])
    lines.setFormatter(JsonFormatter())
    with alone(lines) as logger:
        yield lines, logger
    lines.close()


def read_lines(descriptor: int, last: str) -> list[dict[str, Any]]:
    told = b""
    while last.encode() not in told or not told.endswith(b"\n"):
        told += os.read(descriptor, 65_536)
    return [json.loads(line) for line in told.decode().splitlines()]


def messages(descriptor: int, last: str) -> list[str]:
    return [line["message"] for line in read_lines(descriptor, last)]


def test_lines_come_in_their_order_and_whole(pipe, writer) -> None:
    lines, logger = writer
    for number in range(5):
        logger.info("line %d %s", number, "ä" * 1000)
    lines.flush()
    assert messages(pipe[0], "line 4") == [f"line {n} {'ä' * 1000}" for n in range(5)]
    assert lines.num_lost == 0


LONG = "a" * 100_000  # a pipe holds 64 KiB: the thread that writes waits there


def fill(lines: LineWriter, logger: logging.Logger) -> None:
    """Lose two lines of six."""
    begun_s = time.monotonic()
    for number in range(6):
        logger.info("%d %s", number, LONG)
    assert time.monotonic() - begun_s < 1.0
    assert lines.num_lost == 3


def test_lines_that_nobody_reads_are_lost_and_counted_and_told(pipe, writer) -> None:
    lines, logger = writer
    fill(lines, logger)
    begun_s = time.monotonic()
    lines.flush()
    assert 0.9 < time.monotonic() - begun_s < 3.0
    loss = "3 lines of this log are lost: stderr was not read fast enough"
    assert [message[:1] for message in messages(pipe[0], loss)] == ["0", "1", "2", "3"]
    logger.info("after")
    assert messages(pipe[0], "after") == ["after"]
    assert lines.num_lost == 3


def test_a_loss_is_told_before_the_next_line_and_is_of_no_request(pipe, writer) -> None:
    lines, logger = writer
    fill(lines, logger)
    assert len(messages(pipe[0], '"2 ')) == 3
    current_request_id.set("another")
    logger.info("after")
    current_request_id.set(None)
    loss, after = read_lines(pipe[0], "after")[-2:]
    assert loss["message"].startswith("3 lines of this log are lost")
    assert (loss["level"], loss.get("request_id")) == ("warning", None)
    assert after["request_id"] == "another"


def test_a_reader_that_is_slow_gets_all_lines_at_the_end(pipe, writer) -> None:
    lines, logger = writer
    for number in range(300):
        logger.info("%d %s", number, "a" * 1000)
    told: list[str] = []

    def read() -> None:
        with os.fdopen(os.dup(pipe[0]), "rb", buffering=0) as reader:
            while sum(part.count("\n") for part in told) < 300:  # a line may come in two parts
                told.append(reader.read(4096).decode())
                time.sleep(0.02)

    reading = threading.Thread(target=read)
    reading.start()
    lines.flush()
    reading.join(20)
    assert "".join(told).count("\n") == 300


def test_a_pipe_that_does_not_block_loses_nothing(pipe, writer) -> None:
    lines, logger = writer
    os.set_blocking(pipe[1], False)
    for number in range(3):
        logger.info("%d %s", number, LONG)
    assert [message[:1] for message in messages(pipe[0], '"2 ')] == ["0", "1", "2"]
    assert lines.num_lost == 0


def test_lines_that_cannot_be_written_are_counted(tmp_path) -> None:
    with (tmp_path / "read-only").open("w+b") as file, open(file.name, "rb") as readable:
        lines = LineWriter(descriptor=readable.fileno())
        with alone(lines) as logger:
            logger.info("nowhere")
        lines.flush()
        lines.close()
    assert lines.num_lost == 1


def test_lines_of_several_processes_on_one_full_pipe_stay_whole(pipe) -> None:
    """A pipe takes up to `PIPE_BUF` bytes at once whole, and more in parts."""
    writers = [LineWriter(descriptor=pipe[1]) for _ in range(2)]
    for number in range(2000):
        for name, lines in zip("ab", writers, strict=True):
            line = f"{name}{'x' * (200 + number % 9 * 60)}{name}"
            lines.emit(logging.makeLogRecord({"msg": line}))
    for lines in writers:
        lines.close()
    told: list[bytes] = []
    while sum(part.count(b"\n") for part in told) < 4000:
        told.append(os.read(pipe[0], 16_384))
        time.sleep(0.001)
    lines_told = b"".join(told).decode().splitlines()
    assert all(re.fullmatch("ax+a|bx+b", line) for line in lines_told)
    for name in "ab":
        lengths = [len(line) for line in lines_told if line[0] == name]
        assert lengths == [202 + number % 9 * 60 for number in range(2000)]


FINALISERS_THAT_LOG = """
import gc, logging, os, sys
from service.logs import JsonFormatter, LineWriter

lines = LineWriter(descriptor=os.open(os.devnull, os.O_WRONLY))
lines.setFormatter(JsonFormatter())
logging.basicConfig(level="INFO", handlers=[lines])

class Talks:
    def __init__(self):
        self.itself = self  # left to the garbage collector, which comes at any moment
    def __del__(self):
        logging.info("gone")

gc.set_threshold(20, 2, 2)
for number in range(20_000):
    Talks()
    logging.info("line %d", number)
lines.flush()
print(lines.num_lost)
"""


def test_finalisers_may_log_in_the_middle_of_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FINALISERS_THAT_LOG], capture_output=True, timeout=100, check=True
    )
    assert done.stdout.strip().isdigit()
    assert done.stderr == b""


def test_lost_lines_are_in_the_metrics(server: Running, pipe) -> None:
    def counted() -> float:
        told = server.client.get("/metrics").text
        return float(re.findall(r"^cots_log_lines_lost_total (\S+)$", told, re.M)[0])

    before = counted()
    lines = LineWriter(most_bytes=10, descriptor=pipe[1])
    root = logging.getLogger()
    root.addHandler(lines)
    try:
        root.error("longer than ten bytes")
        wait_until(lambda: counted() >= before + 1)
    finally:
        root.removeHandler(lines)
        lines.close()
    assert counted() >= before + 1  # what was counted stays
