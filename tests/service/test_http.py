"""What comes before, between and after bodies is bounded; the rest is read as HTTP says."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time

import httpx
import pytest

from service import protocol

MAX_HEAD_BYTES = 64 * 1024
BODY = json.dumps({"query": "a dog", "k": 1}).encode()
SEARCH = b"POST /v1/galleries/pets/search HTTP/1.1\r\nHost: localhost\r\n"
JSON_TYPE = b"Content-Type: application/json\r\n"
CHUNKED = SEARCH + JSON_TYPE + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = 8 * MAX_HEAD_BYTES


@pytest.fixture
def connection(server):
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port), timeout=10) as sock:
        yield sock


def send_until_refused(connection, *parts: bytes) -> bytes:
    """Whatever comes back once the server has stopped to read, or all is sent."""
    with contextlib.suppress(ConnectionError):
        for part in parts:
            connection.sendall(part)
    return read_answer(connection)


def read_answer(connection) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1000, 100_000])
@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"a" * ENDLESS,
        SEARCH + b"X-Long: " + b"a" * ENDLESS,
        SEARCH + b"a" * ENDLESS,
        SEARCH + b"a: b\r\n" * (ENDLESS // 6),
        CHUNKED + b"1;" + b"a" * ENDLESS,
        CHUNKED + b"0\r\nX-Trailer: " + b"a" * ENDLESS,
        CHUNKED + b"0\r\n" + b"a: b\r\n" * (ENDLESS // 6),
    ],
    ids=["path", "value", "name", "headers", "extension", "trailer", "trailers"],
)
def test_what_never_ends_is_refused(connection, request_, size) -> None:
    answer = send_until_refused(connection, *pieces(request_, size))
    assert not answer or answer.startswith(b"HTTP/1.1 4")  # a reset may overtake the answer


def test_a_head_that_is_too_long_is_431_logged_and_counted(server, connection, caplog) -> None:
    def counted() -> bool:
        metrics = server.client.get("/metrics").text
        return 'reason="head_too_large"' in metrics and 'status="431"' in metrics

    with caplog.at_level(logging.INFO, "service.requests"):
        connection.sendall(b"GET /" + b"a" * (MAX_HEAD_BYTES + 1))
        head, _, body = read_answer(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    error = json.loads(body)["error"]
    assert error["code"] == "head_too_large"
    assert "65,536 bytes" in error["message"]
    (logged,) = [r for r in caplog.records if getattr(r, "code", "") == "head_too_large"]
    assert f"x-request-id: {logged.request_id}".encode() in head.lower()
    assert counted()


def test_a_broken_body_behind_an_answer_ends_the_connection(server, caplog) -> None:
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port), timeout=10) as sock:
        sock.sendall(CHUNKED.replace(b"pets", b"none") + b"1\r\na\r\n")
        answer = b""
        while not answer.endswith(b"}}"):
            answer += sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 404")
        sock.sendall(b"no chunk\r\n")
        assert read_answer(sock) == b""
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_the_rest_of_a_body_that_is_not_needed_does_not_last(serve, monkeypatch) -> None:
    monkeypatch.setattr(protocol, "WAIT_S", 0.5)
    url = httpx.URL(serve(probe_interval_s=60.0).url)
    with socket.create_connection((url.host, url.port), timeout=10) as sock:
        sock.sendall(CHUNKED.replace(b"pets", b"none") + b"1\r\na\r\n")
        begun_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < begun_s + 5:
                sock.sendall(b"1\r\na\r\n")
                time.sleep(0.05)
        assert 0.4 < time.monotonic() - begun_s < 3


def test_long_header_that_ends_is_taken(connection) -> None:
    head = b"X-Long: " + b"a" * (MAX_HEAD_BYTES - 2000) + b"\r\n"
    length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY)
    connection.sendall(SEARCH + JSON_TYPE + head + length + BODY)
    assert read_answer(connection).startswith(b"HTTP/1.1 200")


def test_bound_is_for_each_request_of_a_connection(connection) -> None:
    head = SEARCH + JSON_TYPE + b"X-Long: " + b"a" * (MAX_HEAD_BYTES - 2000) + b"\r\n"
    length = b"Content-Length: %d\r\n" % len(BODY)
    one = head + length + b"\r\n" + BODY
    last = head + length + b"Connection: close\r\n\r\n" + BODY
    connection.sendall(one * 2 + last)
    assert read_answer(connection).count(b"HTTP/1.1 200") == 3


def test_body_of_many_small_chunks_is_taken(connection) -> None:
    padded = BODY + b" " * MAX_HEAD_BYTES  # six bytes around each: far more than a head may have
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in padded)
    connection.sendall(CHUNKED.replace(b"chunked", b"chunked\r\nConnection: close") + chunks)
    connection.sendall(b"0\r\n\r\n")
    assert read_answer(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_",
    [
        SEARCH + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        SEARCH + b"Content-Length : 3\r\n\r\nabc",
        SEARCH + b"Transfer-Encoding: gzip, chunked, identity\r\n\r\nabc",
        SEARCH + b"X: a\x00b\r\n\r\n",
        b"GET /livez HTTP/1.1 \x00\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["two", "space", "coding", "nul", "line", "tls"],
)
def test_framing_that_others_could_read_differently_is_refused(connection, request_) -> None:
    connection.sendall(request_)
    assert read_answer(connection).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("at_once", [True, False])
def test_body_after_an_upgrade_nobody_knows_is_read(connection, at_once) -> None:
    """Java's client sends this with every request."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    head = SEARCH + JSON_TYPE + upgrade + b"Content-Length: %d\r\n\r\n" % len(BODY)
    connection.sendall(head + BODY if at_once else head)
    if not at_once:
        time.sleep(0.1)
        connection.sendall(BODY)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: example.com\r\n"])
def test_no_host_or_two_are_refused(connection, hosts) -> None:
    connection.sendall(b"GET /livez HTTP/1.1\r\n" + hosts + b"\r\n")
    assert read_answer(connection).startswith(b"HTTP/1.1 400")


def test_trailers_are_no_headers(connection) -> None:
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    close = CHUNKED.replace(b"chunked", b"chunked\r\nConnection: close")
    connection.sendall(close + chunks + b"X-Request-Id: trailer\r\n\r\n")
    answer = read_answer(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"x-request-id: trailer" not in answer


@pytest.mark.parametrize("request_", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_request_is_told_so_in_json(connection, request_) -> None:
    head, _, body = send_until_refused(connection, request_).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"]
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == ("bad_request", "invalid_request_error")
