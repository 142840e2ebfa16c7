"""Logs: one JSON line per request with its route and times, and nothing that a client confided."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from service.logs import JsonFormatter
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
