"""Every limit is a setting: what is just within it is taken, what is just beyond it refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from service import limits, protocol
from service.budget import Budget
from service.errors import ApiError
from service.lag import Lag
from service.limits import PIECE_BYTES, SMALL_BODY_BYTES
from tests.service.conftest import GatedEncoder, Running, error_of, picture, wait_until

SEARCH = "/v1/galleries/pets/search"
UPLOAD = f"{SEARCH}/upload"


@pytest.fixture(scope="module")
def strict(serve) -> Running:
    """A server whose limits are far from the defaults."""
    return serve(
        max_text_bytes=20,
        max_k=7,
        max_offset=5,
        max_queries=3,
        max_query_parts=2,
        max_vectors=10,
        max_image_pixels=64 * 48,
        max_thumbnail_px=50,
        probe_interval_s=60.0,
    )


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def parts(count: int) -> list[dict[str, str]]:
    return [{"text": text} for text in texts(count)]


def image(width: int) -> dict[str, str]:
    return {"image": base64.b64encode(picture(1, size=(width, 48))).decode()}


@pytest.mark.parametrize(
    ("within", "beyond", "param"),
    [
        ({"query": "é" * 10}, {"query": "é" * 10 + "a"}, "query"),
        ({"query": "a", "k": 7}, {"query": "a", "k": 8}, "k"),
        ({"query": "a", "offset": 5}, {"query": "a", "offset": 6}, "offset"),
        ({"queries": texts(3)}, {"queries": texts(4)}, "queries"),
        ({"query": parts(2)}, {"query": parts(3)}, "query"),
        ({"query": image(64)}, {"query": image(65)}, "query.image"),
        (
            {"queries": texts(2), "k": 5, "include": ["embedding"]},
            {"queries": texts(2), "k": 6, "include": ["embedding"]},
            "include",
        ),
    ],
    ids=["text", "k", "offset", "queries", "parts", "pixels", "vectors"],
)
def test_a_search_is_taken_up_to_the_limit_and_refused_beyond(
    strict, within, beyond, param
) -> None:
    answer = strict.client.post(SEARCH, json=within)
    assert answer.status_code == 200, answer.text
    assert error_of(strict.client.post(SEARCH, json=beyond), 422)["param"] == param


def test_an_upload_and_a_thumbnail_keep_to_the_same_limits(strict) -> None:
    for width, status in ((64, 200), (65, 422)):
        data = picture(1, size=(width, 48))
        assert strict.client.post(UPLOAD, files={"file": ("a", data)}).status_code == status
    thumbnail = "/v1/galleries/pets/items/cat.jpg/thumbnail"
    assert strict.client.get(f"{thumbnail}?size=50").status_code == 200
    assert error_of(strict.client.get(f"{thumbnail}?size=51"), 422)["param"] == "size"


def test_vectors_are_counted_by_the_hits_there_can_be(serve) -> None:
    server = serve(max_vectors=50, probe_interval_s=60.0)
    body = {"queries": texts(2), "k": 1000, "include": ["embedding", "metadata"]}
    answer = server.client.post(SEARCH, json=body)  # of a gallery of 21 items
    assert answer.status_code == 200
    assert [len(result["hits"]) for result in answer.json()["results"]] == [21, 21]
    error = error_of(server.client.post(SEARCH, json={**body, "queries": texts(3)}), 422)
    assert error["code"] == "too_many_vectors"
    assert "embedding of 63 hits; at most 50" in error["message"]


def test_a_budget_holds_back_large_shares_and_never_little_ones() -> None:
    budget = Budget(100, little=10)
    with budget.share() as one, budget.share() as other:
        one.take(80)
        with pytest.raises(ApiError, match="busy"):
            other.take(21)
        assert budget.held == 80
        other.take(20)
        with pytest.raises(ApiError, match="busy"):
            one.take(1)
        with budget.share() as little:
            little.take(4)
            little.take(6)
            with pytest.raises(ApiError, match="busy"):
                little.take(1)
        assert budget.held == 100
    assert budget.held == 0


def slow_body(first: bytes, resumed: threading.Event) -> Iterator[bytes]:
    yield first
    resumed.wait(30)
    yield b'"}'


def test_bodies_that_are_held_together_are_bounded_and_small_ones_always_read(serve) -> None:
    server = serve(max_bodies_bytes=10 * SMALL_BODY_BYTES, probe_interval_s=60.0)
    resumed = threading.Event()
    large = b'{"query": "' + b"a" * (9 * SMALL_BODY_BYTES)
    headers = {"Content-Type": "application/json"}

    def send() -> httpx.Response:
        body = slow_body(large, resumed)
        return httpx.post(server.url + SEARCH, content=body, headers=headers, timeout=30)

    def send_more() -> httpx.Response:
        return server.client.post(SEARCH, json={"query": "b" * (2 * SMALL_BODY_BYTES)})

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(send)
        try:
            wait_until(lambda: send_more().status_code == 429)
            refused = send_more()
            assert error_of(refused, 429)["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
            assert server.client.post(SEARCH, json={"query": "a dog"}).status_code == 200
        finally:
            resumed.set()
        assert error_of(first.result(), 422)["code"] == "text_too_long"
    assert error_of(send_more(), 422)["code"] == "text_too_long"  # there is room again


def test_answers_in_the_making_are_bounded_and_little_ones_always_made(serve, encoder) -> None:
    gated = GatedEncoder(encoder)
    server = serve(model=gated, max_hits_together=5000, probe_interval_s=60.0)
    answers = server.app.state.service.answers
    many = {"queries": texts(12), "k": 21, "include": ["embedding"]}  # 12 x 21 x 16 = 4032
    gated.gate.clear()
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(httpx.post, server.url + SEARCH, json=many, timeout=30)
            wait_until(lambda: answers.held == 4032)
            assert error_of(server.client.post(SEARCH, json=many), 429)["code"] == "queue_full"
            little = {"query": "a dog", "k": 21}
            second = pool.submit(httpx.post, server.url + SEARCH, json=little, timeout=30)
            wait_until(lambda: answers.held == 4053)
            gated.gate.set()
            assert [job.result().status_code for job in (first, second)] == [200, 200]
    finally:
        gated.gate.set()
    wait_until(lambda: answers.held == 0)


@contextlib.contextmanager
def connected(server: Running, *, buffer_bytes: int | None = None) -> Iterator[socket.socket]:
    url = httpx.URL(server.url)
    with socket.socket() as sock:
        if buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.settimeout(10)
        sock.connect((url.host, url.port))
        yield sock


def read_all(sock: socket.socket) -> bytes:
    found = b""
    while piece := sock.recv(65536):
        found += piece
    return found


@pytest.mark.parametrize("earlier", [b"", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_head_that_does_not_come_is_408(serve, monkeypatch, earlier) -> None:
    monkeypatch.setattr(protocol, "WAIT_S", 0.5)
    with connected(serve(probe_interval_s=60.0)) as sock:
        if earlier:
            sock.sendall(earlier)
            answer = b""
            while not answer.endswith(b"}"):
                answer += sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
        for _ in range(3):  # a little now and then gives no more time
            sock.sendall(b"GET /livez HT"[:3])
            time.sleep(0.1)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'"code":"head_timeout"' in answer


def test_a_connection_without_a_request_is_closed_and_one_at_work_is_not(
    serve, encoder, monkeypatch
) -> None:
    monkeypatch.setattr(protocol, "WAIT_S", 0.3)
    gated = GatedEncoder(encoder)
    server = serve(model=gated, probe_interval_s=60.0)
    with connected(server) as idle:
        assert read_all(idle) == b""
    gated.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(server.client.post, SEARCH, json={"query": "a dog"})
        time.sleep(0.8)
        gated.gate.set()
        assert busy.result().status_code == 200


def ask_for_much(sock: socket.socket) -> None:
    """An answer of some megabytes: more than the buffers of both sides hold."""
    body = b'{"queries": [' + b",".join([b'"a"'] * 200) + b'], "k": 21, "include": ["embedding"]}'
    sock.sendall(
        b"POST " + SEARCH.encode() + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )


def test_a_client_that_reads_slowly_holds_a_piece_and_one_that_stops_is_cut_off(
    serve, monkeypatch
) -> None:
    monkeypatch.setattr(protocol, "STALL_S", 1.0)
    server = serve(probe_interval_s=60.0)
    answers, connections = server.app.state.service.answers, server._server.server_state.connections
    with connected(server, buffer_bytes=8192) as slow:
        ask_for_much(slow)
        begun_s = time.monotonic()
        found = b""
        while time.monotonic() < begun_s + 2.5:  # longer than a stall may last
            found += slow.recv(65536)
            time.sleep(0.002)
            held = [one.transport.get_write_buffer_size() for one in connections]
            assert max(held, default=0) <= 2 * PIECE_BYTES
        found += read_all(slow)
        head, _, body = found.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head.lower()
    monkeypatch.setattr(protocol, "_REGAINED_S", 0.0)
    with connected(server, buffer_bytes=8192) as drip:  # no piece takes long, and all too long
        ask_for_much(drip)
        wait_until(lambda: answers.held > 0)
        begun_s = time.monotonic()
        while answers.held:
            assert drip.recv(8192)
            time.sleep(0.02)
        assert 0.9 < time.monotonic() - begun_s < 4
    with connected(server, buffer_bytes=8192) as stopped:
        ask_for_much(stopped)
        wait_until(lambda: answers.held > 0)
        wait_until(lambda: answers.held == 0, seconds=5)
        assert not connections


async def late_after(blocks_s: list[float]) -> bool:
    """Whether the loop counts as late once it was held up so often, each time so long."""
    lag = Lag()
    watch = asyncio.create_task(lag.watch())
    await asyncio.sleep(0)
    for block_s in blocks_s:
        time.sleep(block_s)  # noqa: ASYNC251 - as work on the event loop does
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    is_late = lag.is_late
    watch.cancel()
    return is_late


def test_a_loop_is_late_that_is_held_up_again_and_again_and_not_by_one_long_step() -> None:
    assert asyncio.run(late_after([0.06] * 8))
    assert not asyncio.run(late_after([0.5]))
    assert not asyncio.run(late_after([0.001] * 50))


def test_a_late_loop_is_on_time_again() -> None:
    async def scenario() -> tuple[bool, bool]:
        lag = Lag()
        lag._late = 8
        watch = asyncio.create_task(lag.watch())
        before = lag.is_late
        await asyncio.to_thread(wait_until, lambda: not lag.is_late)
        watch.cancel()
        return before, lag.is_late

    assert asyncio.run(scenario()) == (True, False)


def test_answers_on_their_way_are_no_crowd(monkeypatch) -> None:
    monkeypatch.setattr(limits, "CROWD", 1)
    monkeypatch.setattr(Lag, "is_late", True)
    scope = {"type": "http", "path": "/film", "headers": []}
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def scenario() -> None:
        begin, end = asyncio.Event(), asyncio.Event()

        async def film(scope: Scope, receive: Receive, send: Send) -> None:
            await begin.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await end.wait()
            await send({"type": "http.response.body", "body": b""})

        limited = limits.Limits(film, max_bytes=10, together_bytes=10, timeout_s=10, lag=Lag())
        one = asyncio.create_task(limited(dict(scope), receive, send))
        await asyncio.sleep(0)
        await limited(dict(scope), receive, send)  # while the first waits
        begin.set()
        await asyncio.sleep(0.01)
        another = asyncio.create_task(limited(dict(scope), receive, send))
        await asyncio.sleep(0.01)
        end.set()
        await asyncio.gather(one, another)

    asyncio.run(scenario())
    assert statuses == [429, 200, 200]


def test_a_crowd_at_a_late_loop_is_refused_unread_and_who_watches_is_not(
    serve, encoder, monkeypatch
) -> None:
    monkeypatch.setattr(limits, "CROWD", 2)
    monkeypatch.setattr(Lag, "is_late", True)
    gated = GatedEncoder(encoder)
    server = serve(model=gated, probe_interval_s=60.0)
    assert server.client.post(SEARCH, json={"query": "alone"}).status_code == 200
    gated.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        two = [
            pool.submit(httpx.post, server.url + SEARCH, json={"query": text}, timeout=30)
            for text in ("one", "two")
        ]
        in_flight = "cots_requests_in_flight 3.0"  # this look is the third
        wait_until(lambda: in_flight in server.client.get("/metrics").text)
        refused = server.client.post(SEARCH, content=b"not even read")
        assert error_of(refused, 429)["code"] == "queue_full"
        for path in ("/livez", "/readyz", "/metrics"):
            assert server.client.get(path).status_code == 200
        gated.gate.set()
        assert [one.result().status_code for one in two] == [200, 200]
    assert server.client.post(SEARCH, json={"query": "alone"}).status_code == 200
