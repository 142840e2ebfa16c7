"""Logs: one JSON line per request with its route and times, and nothing that a client confided."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.logs import JsonFormatter, LineQueue, num_lost
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
        def encode_texts(self, texts, *, batch_size=64):
            if "boom" in texts:
                raise RuntimeError("what broke")
            return super().encode_texts(texts)

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


@pytest.fixture
def queue(pipe: tuple[int, int]) -> Iterator[tuple[LineQueue, logging.Logger]]:
    lines = LineQueue(most=5, descriptor=pipe[1])
    lines.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.addHandler(lines)
    logger = logging.getLogger("tests.queue")
    logger.setLevel(logging.INFO)
    yield lines, logger
    root.removeHandler(lines)
    lines.close()


def read_lines(descriptor: int, last: str) -> list[str]:
    told = b""
    while last.encode() not in told or not told.endswith(b"\n"):
        told += os.read(descriptor, 65_536)
    return [json.loads(line)["message"] for line in told.decode().splitlines()]


def test_lines_come_in_their_order_and_whole(pipe, queue) -> None:
    lines, logger = queue
    for number in range(5):
        logger.info("line %d %s", number, "ä" * 1000)
    lines.flush()
    told = read_lines(pipe[0], "line 4")
    assert told == [f"line {number} {'ä' * 1000}" for number in range(5)]
    assert num_lost() == 0


def test_lines_that_nobody_reads_are_lost_and_counted_and_told(pipe, queue) -> None:
    lines, logger = queue
    logger.info("a" * 200_000)  # more than a pipe holds: the thread that writes waits here
    wait_until(lambda: lines.queue.qsize() == 0)
    begun_s = time.monotonic()
    for number in range(12):
        logger.info("waits %d", number)
    assert time.monotonic() - begun_s < 1.0
    assert num_lost() == 7
    begun_s = time.monotonic()
    lines.flush()
    assert 0.9 < time.monotonic() - begun_s < 3.0
    assert read_lines(pipe[0], "waits 4")[1:] == [f"waits {number}" for number in range(5)]
    logger.info("after")
    loss = "7 lines of this log are lost: stderr was not read fast enough"
    assert read_lines(pipe[0], "after") == [loss, "after"]
    assert num_lost() == 7
