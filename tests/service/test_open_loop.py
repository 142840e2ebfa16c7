"""The load generator: arrivals as drawn, and latencies that hide no waiting."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from aiohttp import web

from benchmarks.load_queries import image_calls, mixed_calls, sentences, text_calls
from benchmarks.load_reloads import Answers
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
    assert by_time[2].fault == "ServerDisconnectedError"
    assert by_time[3].fault == "three"


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
