"""Under pressure: full queues, deadlines, a stuck model, large bodies, keys, logs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from cots_model.encoder import Encoder
from cots_model.errors import InputError
from service import queries
from service.pace import Pace
from service.server import bind
from tests.service.conftest import GatedEncoder, Running, error_of, picture, wait_until

SEARCH = "/v1/galleries/pets/search"


@pytest.fixture
def gated(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatedEncoder]:
    monkeypatch.setattr(Pace, "learn", lambda *_: None)  # a gate is not the model's pace
    gated = GatedEncoder(encoder)
    yield gated
    gated.gate.set()


def ask(server: Running, text: str) -> httpx.Response:
    return httpx.post(server.url + SEARCH, json={"query": text}, timeout=30)


def test_full_queue_is_429_with_retry_after_and_waiting_texts_share_a_batch(serve, gated) -> None:
    server = serve(model=gated, queue_size=3, probe_interval_s=60.0)
    embedder = server.app.state.service.embedder
    gated.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, server, "first")
        wait_until(lambda: ["first"] in gated.begun)
        waiting = [pool.submit(ask, server, f"text {n}") for n in range(3)]
        wait_until(lambda: embedder.waiting == 3)
        begun_s = time.monotonic()
        refused = ask(server, "one more")
        assert time.monotonic() - begun_s < 2
        assert error_of(refused, 429)["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(server.url + "/livez").status_code == 200
        gated.gate.set()
        assert [job.result().status_code for job in (first, *waiting)] == [200] * 4
    assert sorted(gated.batches[-1]) == ["text 0", "text 1", "text 2"]
    assert waiting[0].result().json()["took_ms"]["queue"] > 0


def test_text_that_would_not_be_done_in_time_is_429_at_once(serve, gated, monkeypatch) -> None:
    server = serve(model=gated, deadline_s=10.0, probe_interval_s=60.0)
    pace = server.app.state.service.embedder._pool._pace
    monkeypatch.setattr(pace, "expected_s", lambda job, units: 25.0 * units)
    gated.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server, "first")  # nothing waits: it is tried
        wait_until(lambda: ["first"] in gated.begun)
        begun_s = time.monotonic()
        refused = ask(server, "second")
        assert time.monotonic() - begun_s < 2
        assert error_of(refused, 429)["code"] == "queue_full"
        retry_s = int(refused.headers["retry-after"])  # for 50 s of work, of which 10 are given
        assert 30 <= retry_s <= 40
        gated.gate.set()
        assert first.result().status_code == 200
    assert ask(server, "third").status_code == 200


def test_picture_that_the_encoder_has_no_room_for_is_not_decoded(serve, gated, monkeypatch) -> None:
    server = serve(model=gated, queue_size=1, probe_interval_s=60.0)
    decoded = []
    monkeypatch.setattr(queries, "decode_image", lambda data, **_: decoded.append(data))
    gated.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        texts = [pool.submit(ask, server, "first")]
        wait_until(lambda: ["first"] in gated.begun)
        texts.append(pool.submit(ask, server, "second"))
        wait_until(lambda: server.app.state.service.embedder.waiting == 1)
        refused = server.client.post(f"{SEARCH}/upload", files={"file": ("a", picture(1))})
        assert error_of(refused, 429)["code"] == "queue_full"
        assert decoded == []
        gated.gate.set()
        assert [text.result().status_code for text in texts] == [200, 200]


def test_deadline_is_504_and_the_work_is_dropped(serve, gated) -> None:
    server = serve(model=gated, deadline_s=0.5, probe_interval_s=60.0)
    gated.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        stuck = pool.submit(ask, server, "stuck")
        wait_until(lambda: ["stuck"] in gated.begun)
        begun_s = time.monotonic()
        late = pool.submit(ask, server, "late")
        assert error_of(late.result(), 504)["code"] == "deadline_exceeded"
        assert time.monotonic() - begun_s < 3
        assert error_of(stuck.result(), 504)
    gated.gate.set()
    assert ask(server, "after").status_code == 200
    assert not any("late" in batch for batch in gated.batches)


def test_stuck_model_turns_readyz_503_and_back(serve, gated) -> None:
    server = serve(model=gated, probe_interval_s=0.05, probe_max_age_s=0.5)
    wait_until(lambda: server.client.get("/readyz").status_code == 200)
    gated.gate.clear()
    wait_until(lambda: server.client.get("/readyz").status_code == 503)
    reasons = server.client.get("/readyz").json()["reasons"]
    assert any("probe" in reason for reason in reasons)
    assert server.client.get("/livez").status_code == 200
    gated.gate.set()
    wait_until(lambda: server.client.get("/readyz").status_code == 200)


def test_model_that_gives_nonsense_is_not_ready(serve, encoder) -> None:
    class Broken(GatedEncoder):
        def read_texts(self, texts, *, batch_size=64):
            read = super().read_texts(texts)
            return replace(read, z_BE=read.z_BE * float("nan"))

    server = serve(model=Broken(encoder), probe_interval_s=60.0)
    answer = server.client.get("/readyz")
    assert answer.status_code == 503
    server.client.get("/openapi.json")
    metrics = server.client.get("/metrics").text
    assert 'cots_rejected_requests_total{reason="not_ready",status="503"} 1.0' in metrics
    assert 'route="/openapi.json",status="200"} 1.0' in metrics
    assert "ProbeError" in " ".join(answer.json()["reasons"])


def test_bug_is_500_in_the_error_shape_and_logged_with_its_trace(serve, encoder, caplog) -> None:
    class Faulty(GatedEncoder):
        def read_texts(self, texts, *, batch_size=64):
            if "boom" in texts:
                raise RuntimeError("secret detail")
            return super().read_texts(texts)

    server = serve(model=Faulty(encoder), probe_interval_s=60.0)
    with caplog.at_level(logging.ERROR):
        answer = ask(server, "boom")
    assert error_of(answer, 500)["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert any(r.exc_info and "secret detail" in str(r.exc_info[1]) for r in caplog.records)
    with ThreadPoolExecutor(4) as pool:  # in one batch, only the bad text fails
        answers = list(pool.map(lambda text: ask(server, text), ["ok", "boom", "fine", "good"]))
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]


@pytest.fixture(scope="module")
def small(serve) -> Running:
    return serve(max_body_bytes=10_000, body_timeout_s=1.0)


def test_declared_large_body_is_413(small) -> None:
    answer = small.client.post(SEARCH, json={"query": "a" * 20_000})
    assert error_of(answer, 413)["code"] == "body_too_large"


def test_streamed_large_body_is_413_before_it_ends(small) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100_000):
            sent += 1000
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    try:
        answer = small.client.post(SEARCH, content=chunks(), headers=headers)
    except httpx.WriteError:  # the server had answered and the client was still sending
        answer = None
    assert answer is None or error_of(answer, 413)["code"] == "body_too_large"


def test_chunked_body_over_the_limit_is_answered_while_it_is_sent(small) -> None:
    host, port = httpx.URL(small.url).host, httpx.URL(small.url).port
    head = f"POST {SEARCH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection((host, port), timeout=10) as wire:
        wire.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(11):
            wire.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        assert wire.recv(4096).startswith(b"HTTP/1.1 413")  # the body never ended


def test_upload_over_the_limit_is_413(small) -> None:
    answer = small.client.post(f"{SEARCH}/upload", files={"file": ("a.jpg", bytes(20_000))})
    assert error_of(answer, 413)["code"] == "body_too_large"


def test_body_at_the_limit_is_accepted(small) -> None:
    body = b'{"query": "a"}'
    body += b" " * (10_000 - len(body))
    headers = {"content-type": "application/json"}
    assert small.client.post(SEARCH, content=body, headers=headers).status_code == 200
    assert small.client.post(SEARCH, content=body + b" ", headers=headers).status_code == 413


def test_body_that_does_not_come_is_408(small) -> None:
    host, port = httpx.URL(small.url).host, httpx.URL(small.url).port
    head = f"POST {SEARCH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection((host, port), timeout=10) as wire:
        wire.sendall(f"{head}content-length: 50\r\n\r\n{{".encode())
        assert wire.recv(4096).startswith(b"HTTP/1.1 408")


KEY = "a-long-random-key"


@pytest.fixture(scope="module")
def locked(serve) -> Running:
    return serve(api_key_sha256=("0" * 64, hashlib.sha256(KEY.encode()).hexdigest()))


def test_keys_protect_everything_but_the_health_routes(locked) -> None:
    for path in ("/livez", "/readyz"):
        assert locked.client.get(path).status_code == 200
    for path in ("/", "/v1/galleries", "/openapi.json", "/nope", "/livez/", "/static/app.js"):
        answer = locked.client.get(path)
        assert error_of(answer, 401)["code"] == "invalid_api_key"
        assert "Bearer" in answer.headers["www-authenticate"]
    assert locked.client.post(SEARCH, json={"query": "a"}).status_code == 401


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        ("Basic " + base64.b64encode(f"me:{KEY}".encode()).decode(), 200),
        (f"Bearer {KEY}x", 401),
        ("Bearer", 401),
        (KEY, 401),
        ("Basic ???", 401),
        ("Bearer " + hashlib.sha256(KEY.encode()).hexdigest(), 401),
    ],
)
def test_key_is_accepted_as_bearer_or_basic_password(locked, header, status) -> None:
    answer = locked.client.get("/v1/galleries", headers={"authorization": header})
    assert answer.status_code == status


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70])
def test_bind_refuses_a_host_that_is_not_here(host) -> None:
    with pytest.raises(InputError, match="is not known"):
        bind(host, 0)


def test_request_is_logged_with_its_id_and_without_its_words(client, caplog) -> None:
    with caplog.at_level(logging.INFO, "service.requests"):
        headers = {"x-request-id": "my-id-1"}
        answer = client.post(SEARCH, json={"query": "private words"}, headers=headers)
        wait_until(lambda: _of_request(caplog, "my-id-1"))  # logged after the answer is sent
    assert answer.headers["x-request-id"] == "my-id-1"
    logged = _of_request(caplog, "my-id-1")
    assert [(r["path"], r["status"]) for r in logged] == [(SEARCH, 200)]
    assert "private" not in str(logged)
    forged = client.get("/livez", headers={"x-request-id": "a b"})
    assert forged.headers["x-request-id"] != "a b"


def _of_request(caplog: pytest.LogCaptureFixture, request_id: str) -> list[dict[str, object]]:
    return [vars(r) for r in caplog.records if vars(r).get("request_id") == request_id]


def test_every_answer_has_security_headers(client) -> None:
    for path in ("/", "/v1/galleries", "/nope", "/v1/galleries/pets/items/cat.jpg/content"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers or "uvicorn" in headers["server"]


def test_openapi_describes_the_routes(client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "requestBody" in paths["/v1/galleries/{g}/search"]["post"]
    assert {"/livez", "/readyz", "/v1/galleries", "/v1/galleries/{g}/search/upload"} <= set(paths)


def test_upload_with_large_picture_is_searched(client) -> None:
    files = {"file": ("large.png", picture(5, size=(2000, 1500), kind="PNG"))}
    assert client.post(f"{SEARCH}/upload", files=files).status_code == 200


def test_answers_are_sent_at_once_and_not_held_back_for_an_acknowledgement() -> None:
    """Nagle's algorithm beside delayed acknowledgements would cost 40 ms for each answer."""

    async def scenario() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = bind("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            no_delay = await found
            writer.close()
            await writer.wait_closed()
        return no_delay

    assert asyncio.run(scenario())


def test_what_a_client_has_left_is_not_done(serve, gated) -> None:
    server = serve(model=gated, probe_interval_s=60.0)
    embedder = server.app.state.service.embedder
    gated.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server, "first")
        wait_until(lambda: ["first"] in gated.begun)
        for text in ("second", "third"):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(server.url + SEARCH, json={"query": text}, timeout=0.3)
        wait_until(lambda: embedder.waiting == 0)
        gated.gate.set()
        assert first.result().status_code == 200
    assert ask(server, "fourth").status_code == 200
    assert ["second"] not in gated.begun
    assert ["third"] not in gated.begun
    line = 'cots_requests_total{method="POST",route="/v1/galleries/{g}/search",status="0"}'
    told = httpx.get(server.url + "/metrics").text
    assert any(one.startswith(line) and float(one.split()[-1]) >= 2 for one in told.splitlines())


def test_a_client_that_leaves_a_stream_harms_nobody(serve) -> None:
    server = serve()
    with (
        httpx.Client(base_url=server.url) as client,
        client.stream("GET", "/v1/galleries/pets/items/cat.jpg/content") as answer,
    ):
        assert answer.status_code == 200
    assert httpx.get(server.url + "/livez").status_code == 200
