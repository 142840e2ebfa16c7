"""When a call is made again, after how long, and when no more: with and without an event loop."""

from __future__ import annotations

import io
import random
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from cots_client import (
    APIError,
    Client,
    CotsError,
    DeadlineError,
    InputError,
    OverloadedError,
    TransportError,
    UnavailableError,
)
from tests.client.conftest import URL, Time, answer, error

DATE = "Thu, 01 Jan 2026 12:00:00 GMT"
RELOADED = {"gallery": "photos", "previous_version": None, "version": "2"}


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(script, status) -> None:
    server = script(error(status), answer())
    assert server.ask("search", "photos", "a dog").hits[0].id == "a.jpg"
    assert len(server.requests) == 2
    assert server.time.waits_s == [0.25]


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, 0.25),
        ({"retry_after": "2"}, 2.25),
        ({"retry_after": "0"}, 0.25),
        ({"retry_after": "3600"}, 60.25),  # not longer than a minute at once
        ({"retry_after": "Thu, 01 Jan 2026 12:00:05 GMT", "date": DATE}, 5.25),
        ({"retry_after": "Thu, 01 Jan 2026 11:00:00 GMT", "date": DATE}, 0.25),
        ({"retry_after": "Thu, 01 Jan 2015 11:00:00 GMT"}, 0.25),  # by this machine's clock
        ({"retry_after": "soon"}, 0.25),
        ({"retry_after": "inf"}, 0.25),
        ({"retry_after": "-5"}, 0.25),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(script, status, headers, wait_s) -> None:
    server = script(error(status, **headers), answer())
    server.ask("search", "photos", "a dog", options={"timeout_s": 600})
    assert server.time.waits_s == [wait_s]


@pytest.mark.parametrize(
    ("made", "num_requests"),
    [
        (error(503, "gallery_unavailable"), 1),
        (error(503, "out_of_memory"), 1),
        (error(503, "gallery_unavailable", retry_after="1"), 2),
        (error(503, "not_ready"), 2),
        (error(503, "shutting_down"), 2),
        (answer(503, {"error": {"message": "no backend", "code": "overloaded"}}), 2),
        (answer(503, {"status": "down"}), 2),
        (lambda request: httpx.Response(503, html="<h1>Service Unavailable</h1>"), 2),
    ],
)
def test_a_server_that_is_away_for_good_is_asked_once(script, made, num_requests) -> None:
    server = script(made, answer())
    try:
        server.ask("search", "photos", "a dog")
    except UnavailableError:
        assert num_requests == 1
    assert len(server.requests) == num_requests


def test_a_wait_beyond_the_deadline_is_not_begun(script) -> None:
    server = script(error(429, retry_after="31"), answer())
    with pytest.raises(OverloadedError) as caught:
        server.ask("search", "photos", "a dog")
    assert caught.value.retry_after_s == 31
    assert len(server.requests) == 1
    assert server.time.waits_s == []


def test_waits_double_up_to_a_limit_and_tries_end(script) -> None:
    server = script(error(503))
    with pytest.raises(UnavailableError) as caught:
        server.ask("galleries", options={"timeout_s": 600, "max_retries": 8})
    assert server.time.waits_s == [0.25, 0.5, 1, 2, 4, 8, 8, 8]
    assert caught.value.__notes__ == ["after 9 tries"]


def test_waits_are_random_so_that_clients_do_not_come_back_together(script) -> None:
    server = script(error(503))
    rng = random.Random(0)
    with pytest.raises(UnavailableError):
        server.ask(
            "galleries", options={"timeout_s": 900, "max_retries": 50, "uniform": rng.uniform}
        )
    waits_s = server.time.waits_s[5:]
    assert len({*waits_s}) == 45
    assert min(waits_s) < 2
    assert 6 < max(waits_s) <= 8


def test_no_retries_are_no_retries(script) -> None:
    server = script(error(429), answer())
    with pytest.raises(OverloadedError):
        server.ask("search", "photos", "a dog", options={"max_retries": 0})
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 408, 409, 413, 415, 422, 500, 501])
def test_what_another_try_does_not_mend_is_asked_once(script, status) -> None:
    server = script(error(status, retry_after="1"), answer())
    with pytest.raises(APIError) as caught:
        server.ask("search", "photos", "a dog")
    assert caught.value.status == status
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("failure", "retried"),
    [
        (error(429), True),
        (error(503), True),
        (httpx.ConnectError("refused"), True),
        (httpx.ConnectTimeout("late"), True),
        (error(502), False),
        (error(504), False),
        (httpx.ReadError("reset"), False),
        (httpx.RemoteProtocolError("gone"), False),
    ],
)
def test_what_changes_the_server_is_sent_again_only_if_it_was_not_done(
    script, failure, retried
) -> None:
    server = script(failure, answer(200, RELOADED))
    if retried:
        assert server.ask("reload", "photos").version == "2"
    else:
        with pytest.raises(CotsError):
            server.ask("reload", "photos")
    assert len(server.requests) == 1 + retried


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.RemoteProtocolError("gone"),
    ],
)
def test_a_search_is_sent_again_when_the_connection_breaks(script, failure) -> None:
    server = script(failure, answer())
    assert server.ask("search", "photos", "a dog").gallery == "photos"
    assert len(server.requests) == 2


def test_a_server_that_is_not_there_is_told_with_what_to_do(script) -> None:
    server = script(httpx.ConnectError("Connection refused"))
    with pytest.raises(TransportError, match=r"cannot connect \(Connection refused\).*COTS_URL"):
        server.ask("search", "photos", "a dog")
    assert len(server.requests) == 4
    with pytest.raises(ConnectionError):  # as the standard library calls it
        server.ask("galleries")


def test_a_break_after_a_reload_was_sent_says_that_it_may_be_done(script) -> None:
    with pytest.raises(TransportError, match="the server may have done it"):
        script(httpx.ReadError("reset")).ask("reload", "photos")


def test_an_answer_that_takes_too_long_is_a_timeout(script) -> None:
    def late(request: httpx.Request) -> httpx.Response:
        server.time.now_s += request.extensions["timeout"]["read"]
        raise httpx.ReadTimeout("")

    server = script(late)
    with pytest.raises(DeadlineError, match="no answer within 30 s") as caught:
        server.ask("search", "photos", "a dog")
    assert isinstance(caught.value, TimeoutError)
    assert len(server.requests) == 1


def test_every_try_has_what_is_left_of_the_time_and_none_begins_after_it(script) -> None:
    begun_s: list[float] = []

    def slow(request: httpx.Request) -> httpx.Response:
        begun_s.append(server.time.now_s - 100)
        server.time.now_s += 12
        return error(503)(request)

    server = script(slow)
    with pytest.raises(UnavailableError):
        server.ask("search", "photos", "a dog", options={"max_retries": 9})
    assert begun_s == [0, 12.25, 24.75]
    timeouts = [request.extensions["timeout"] for request in server.requests]
    assert [timeout["read"] for timeout in timeouts] == [30, 17.75, 5.25]
    assert [timeout["connect"] for timeout in timeouts] == [5, 5, 5]


def test_a_sleep_that_takes_too_long_is_the_end(script) -> None:
    server = script(error(503), answer())
    oversleep = server.time.sleep
    server.time.sleep = lambda seconds: oversleep(seconds + 100)
    with pytest.raises(UnavailableError):
        server.ask("galleries")
    assert len(server.requests) == 1


def test_a_reload_may_have_a_time_of_its_own(script) -> None:
    server = script(answer(200, RELOADED))
    server.ask("reload", "photos", timeout_s=600)
    assert server.requests[0].extensions["timeout"]["read"] == 600
    with pytest.raises(InputError, match="timeout_s is 0"):
        server.ask("reload", "photos", timeout_s=0)


@pytest.mark.parametrize("failure", [error(503), error(429), httpx.ConnectError("refused")])
def test_health_is_told_at_once(script, failure) -> None:
    for method in ("is_live", "is_ready"):
        server = script(failure)
        assert server.ask(method) is False
        assert len(server.requests) == 1
    server = script(failure)
    with pytest.raises(CotsError):
        server.ask("readiness")
    assert len(server.requests) == 1


class Dripping(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body of which a byte comes every so often, for a quarter of an hour."""

    def __init__(self, time: Time) -> None:
        self._time = time

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(1000):
            self._time.now_s += 0.9
            yield b" "

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


@pytest.mark.parametrize("method", ["is_live", "is_ready", "readiness"])
def test_health_that_trickles_is_not_waited_for(script, method) -> None:
    server = script(lambda request: httpx.Response(200, stream=Dripping(server.time)))
    if method == "readiness":
        with pytest.raises(DeadlineError, match="no answer within 2 s"):
            server.ask(method, options={"timeout_s": 2})
    else:
        assert server.ask(method, options={"timeout_s": 2}) is False
    assert len(server.requests) == 1
    assert 2 < server.time.now_s - 100 < 3


def test_reasons_come_with_a_503(script) -> None:
    body = {"status": "unavailable", "reasons": ["shutting down"], "warnings": []}
    found = script(answer(503, body)).ask("readiness")
    assert (found.ready, found.reasons) == (False, ("shutting down",))
    assert script(answer(503, body)).ask("is_ready") is False


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_picture_from_a_stream_is_sent_whole_again(script, weight) -> None:
    from cots_client import image

    server = script(error(429), httpx.ReadError("reset"), answer())
    data = bytes(range(256)) * 40
    server.ask("search", "photos", image(io.BytesIO(data), weight=weight))
    first, *rest = (_without_boundary(request) for request in server.requests)
    assert len(first) > len(data)
    assert rest == [first, first]


def _without_boundary(request: httpx.Request) -> bytes:
    boundary = request.headers["content-type"].partition("boundary=")[2]
    return request.content.replace(boundary.encode(), b"") if boundary else request.content


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"max_retries": -1}, "max_retries"),
    ],
)
def test_policies_that_are_none_are_refused(options, word) -> None:
    with pytest.raises(InputError, match=word):
        Client(URL, **options)
