"""The load generator: arrivals as drawn, and latencies that hide no waiting."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from aiohttp import web

from benchmarks.connections import Connections, UnreadableError
from benchmarks.load import conclude
from benchmarks.load_queries import image_calls, mixed_calls, sentences, text_calls
from benchmarks.load_reloads import Answers
from benchmarks.load_saturation import Round, compare
from benchmarks.open_loop import Call, Outcome, arrivals, open_loop, percentiles, summarise


async def under_load(handler, due_s, **options) -> list[Outcome]:
    """The outcomes of calls to a server of one handler."""
    app = web.Application()
    app.router.add_post("/x", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        call = Call("/x", b"{}", "text")
        return await open_loop(f"http://{host}:{port}", due_s, lambda: call, **options)
    finally:
        await runner.cleanup()


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(200.0, 100.0, np.random.default_rng(0))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20_000, rel=0.05)
    assert max(times) < 100
    assert gaps.mean() == pytest.approx(gaps.std(), rel=0.05)  # as of an exponential


def test_a_server_that_stands_still_holds_up_no_arrival_and_is_charged_for_it() -> None:
    free = asyncio.Event()
    in_flight = 0

    async def stalls(_: web.Request) -> web.Response:
        nonlocal in_flight
        in_flight += 1
        if in_flight == 5:  # the last of them comes though none is answered
            asyncio.get_running_loop().call_later(0.2, free.set)
        await free.wait()
        return web.json_response({})

    outcomes = asyncio.run(under_load(stalls, [0.0, 0.01, 0.02, 0.03, 0.04]))
    assert [one.status for one in outcomes] == [200] * 5
    assert all(one.latency_ms >= 190 for one in outcomes)
    assert sorted(one.due_s for one in outcomes) == [0.0, 0.01, 0.02, 0.03, 0.04]


def test_every_arrival_has_an_outcome_whatever_comes_back() -> None:
    numbers = iter(range(9))

    async def odd(request: web.Request) -> web.Response:
        number = next(numbers)
        if number == 1:
            return web.json_response({}, status=429)
        if number == 2:
            request.transport.close()
        return web.json_response({"number": number})

    def check(body: bytes) -> str | None:
        return "three" if json.loads(body)["number"] == 3 else None

    due_s = [0.0, 0.05, 0.1, 0.15]
    outcomes = asyncio.run(under_load(odd, due_s, check=check))
    by_time = sorted(outcomes, key=lambda one: one.due_s)
    assert [one.status for one in by_time] == [200, 429, 0, 200]
    assert by_time[2].fault == "ConnectionResetError"
    assert by_time[3].fault == "three"


@contextlib.contextmanager
def scripted(*answers: Sequence[bytes]) -> Iterator[str]:
    """A server that answers the first request of each connection so, each piece by itself."""

    def serve() -> None:
        for pieces in answers:
            with listener.accept()[0] as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
                connection.recv(65536)  # the request, which is one packet
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(0.02)
                connection.recv(65536)  # until the client closes

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield "http://{}:{}".format(*listener.getsockname())
        thread.join(10)


def ask(url: str, times: int = 1, *, answer_s: float = 5.0) -> list[object]:
    """Answers, or the types of errors, of requests one after the other."""

    async def scenario() -> list[object]:
        found: list[object] = []
        with contextlib.closing(Connections(url, answer_s=answer_s)) as connections:
            for _ in range(times):
                try:
                    found.append(await connections.post("/x", b"{}"))
                except OSError as err:
                    found.append(type(err))
                await asyncio.sleep(0.3)
        return found

    return asyncio.run(scenario())


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"


@pytest.mark.parametrize("cuts", [(), (10,), (30, 39, 41), (len(OK) - 1,)])
def test_an_answer_is_read_whole_however_it_comes(cuts) -> None:
    pieces = [OK[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(OK)])]
    with scripted(pieces) as url:
        assert ask(url) == [(200, b"abcde")]


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"f",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"HTTP/1.1 2xx\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_an_answer_that_cannot_be_read_is_a_fault(answer) -> None:
    with scripted([answer]) as url:
        assert ask(url) == [UnreadableError]


def test_an_answer_that_does_not_end_is_a_fault_in_the_end() -> None:
    with scripted([OK[:20]]) as url:
        assert ask(url, answer_s=0.5) == [TimeoutError]


@pytest.mark.parametrize(
    "first",
    [
        [OK, OK.replace(b"abcde", b"stray")],
        [OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)],
    ],
    ids=["stray", "close"],
)
def test_a_connection_that_is_not_as_it_was_is_not_used_again(first) -> None:
    with scripted(first, [OK.replace(b"abcde", b"other")]) as url:
        assert ask(url, 2) == [(200, b"abcde"), (200, b"other")]


def test_nobody_listening_is_told_from_an_answer_that_never_came() -> None:
    call = Call("/x", b"{}", "text")
    [outcome] = asyncio.run(open_loop("http://127.0.0.1:1", [0.0], lambda: call))
    assert (outcome.status, outcome.fault) == (0, "refused")


def test_a_summary_counts_what_was_due_and_what_was_done_in_its_time() -> None:
    outcomes = [
        Outcome("text", 0.5, 0.0, 10.0, 200),
        Outcome("text", 0.9, 0.0, 300.0, 200),  # done after the begin
        Outcome("text", 1.0, 2.0, 100.0, 200),
        Outcome("text", 1.5, 0.0, 5.0, 429),
        Outcome("text", 1.9, 0.0, 900.0, 200),  # done after the end
        Outcome("text", 1.95, 0.0, 1.0, 0, "refused"),
    ]
    found = summarise(outcomes, from_s=1.0, to_s=2.0)
    assert found.offered_per_s == 4
    assert found.answered_per_s == 2
    assert found.statuses == {"200": 2, "429": 1, "0": 1}
    assert found.latency_ms["max"] == 900
    assert found.rejected_ms["p50"] == 5
    assert found.faults == {"refused": 1}
    assert percentiles([]) == {}


def rate(of_offline: float, answered: float, *, refused: bool, generator: float = 0.0) -> dict:
    return {
        "of_offline": of_offline,
        "answered_per_s": answered,
        "latency_ms": {"max": 100 * of_offline},
        "rejected_ms": {"p99": 10 * of_offline} if refused else {},
        "generator_cores": generator,
    }


def test_saturation_is_the_mean_of_the_rates_from_offline_throughput_on() -> None:
    bare = {"bare_ms": {"text": 10.0}, "offline_per_s": {"text": 100.0}}
    rates = [
        rate(0.5, 50, refused=False),
        rate(0.9, 85, refused=True),
        rate(1.0, 90, refused=False, generator=0.2),
        rate(2.0, 80, refused=True, generator=0.4),
    ]
    kinds = {"text": {"one_client_ms": {"p50": 12.0}, "rates": rates}}
    found = conclude(bare, kinds, cores=2)["text"]
    assert found == {
        "one_client_p50_of_bare": 1.2,
        "saturation_per_s": 85.0,
        "saturation_of_offline": 0.85,
        "saturation_of_offline_on_other_cores": 1.0,
        "worst_p99_of_429_ms": 20.0,
        "worst_accepted_ms": 200.0,
    }
    none = conclude(bare, {"text": {**kinds["text"], "rates": rates[:1]}}, cores=2)["text"]
    assert none["saturation_per_s"] is None


def test_no_sentence_comes_twice_and_the_same_seed_gives_the_same() -> None:
    stream, again = sentences(3), sentences(3)
    some = [next(stream) for _ in range(5000)]
    assert len(set(some)) == 5000
    assert some == [next(again) for _ in range(5000)]
    assert min(len(one.split()) for one in some) >= 5


def test_calls_are_searches_of_their_kind() -> None:
    texts, images, mixed = text_calls("g", 1), image_calls("g", 1), mixed_calls("g", 1, 0.5)
    assert isinstance(json.loads(texts().body)["query"], str)
    assert set(json.loads(images().body)["query"]) == {"image"}
    assert {mixed().kind for _ in range(50)} == {"text", "image"}


def test_hits_of_another_version_than_named_are_noticed() -> None:
    answers = Answers()
    for version, ids in (("1", ["a-1", "a-2"]), ("2", ["b-1", "b-2"]), ("1", ["a-1", "b-1"])):
        body = {"version": version, "hits": [{"id": one} for one in ids * 5]}
        assert answers.check(json.dumps(body).encode()) is None
    assert answers.mixed({"1": "a-", "2": "b-"}) == ["1: ('a-', 'b-')"]
    assert answers.mixed({"1": "a-"}) == ["2: ('b-',)", "1: ('a-', 'b-')"]
    assert answers.check(b'{"version": "1", "hits": []}') == "0 hits"


def test_each_round_is_beside_what_the_encoder_did_before_and_after_it() -> None:
    rounds = [
        Round(11.0, {"answered_per_s": 90.0, "rejected_ms": None}),
        Round(22.0, {"answered_per_s": 40.0, "rejected_ms": {"p99": 30.0}}),
        Round(24.0, {"answered_per_s": 45.0, "rejected_ms": {"p99": 50.0}}),
    ]
    found = compare(rounds, offline_per_s=[130, 70, 30, 70], bare_ms=[9, 11, 29, 11])
    assert found["of_offline"] == {"median": 0.9, "each": [0.9, 0.8, 0.9]}
    assert found["one_client_of_bare"] == {"median": 1.1, "each": [1.1, 1.1, 1.2]}
    assert found["p99_of_429_ms"] == {"median": 40.0, "each": [30.0, 50.0]}
