"""What is raised, what it says, and that the key is never part of it."""

from __future__ import annotations

import hashlib
import logging
import pickle
import traceback

import httpx
import pytest

from cots_client import (
    AnswerError,
    APIError,
    AsyncClient,
    AuthenticationError,
    Client,
    ConflictError,
    CotsError,
    DeadlineExceededError,
    InputError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    QueryError,
    TooLargeError,
    TransportError,
    UnavailableError,
)
from tests.client.conftest import FOUND, URL, answer, error

KEY = "sk-a-long-secret-key"
CLASSES = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    418: APIError,
    422: InvalidRequestError,
    429: OverloadedError,
    500: APIError,
    503: UnavailableError,
    504: DeadlineExceededError,
}


@pytest.mark.parametrize(("status", "kind"), CLASSES.items())
def test_statuses_have_classes_with_the_fields_of_the_service(script, status, kind) -> None:
    server = script(error(status, "its_code", x_request_id="r-1"))
    with pytest.raises(CotsError) as caught:
        server.ask("search", "photos", "a dog", options={"max_retries": 0})
    found = caught.value
    assert type(found) is kind
    assert (found.status, found.type, found.code, found.param, found.message, found.request_id) == (
        status,
        "some_type",
        "its_code",
        "query",
        "told by the server",
        "r-1",
    )
    assert str(found) == f"told by the server (HTTP {status} its_code, request r-1)"


@pytest.mark.parametrize(
    "made",
    [
        OverloadedError(429, "t", "c", None, "m", "r", 2.0),
        QueryError(3, "t", "c", "queries.3", "m"),
        TransportError("gone"),
        InputError("bad"),
    ],
)
def test_errors_travel_between_processes(made) -> None:
    found = pickle.loads(pickle.dumps(made))  # noqa: S301
    assert (type(found), str(found), vars(found)) == (type(made), str(made), vars(made))


def test_errors_of_the_service_are_told(cots) -> None:
    with pytest.raises(NotFoundError, match="no gallery 'phots'; GET /v1/galleries") as caught:
        cots.search("phots", "a dog")
    assert (caught.value.code, caught.value.param) == ("gallery_not_found", "gallery")
    assert caught.value.request_id
    with pytest.raises(InvalidRequestError, match="k") as refused:
        cots.search("pets", "a dog", k=0)
    assert refused.value.param == "k"
    with pytest.raises(InvalidRequestError) as empty:
        cots.search("pets", " ")
    assert empty.value.code == "text_empty"


def page(status: int, text: str = "<h1>Bad Gateway</h1>", **headers: str):
    return lambda request: httpx.Response(status, html=text, headers=headers)


def test_an_answer_of_something_in_between_is_told_as_that(script) -> None:
    with pytest.raises(APIError, match=r"answered 502 Bad Gateway: .* check base_url") as caught:
        script(page(502)).ask("search", "photos", "a dog")
    assert caught.value.code == "http_502"
    with pytest.raises(UnavailableError, match="no answer of COTS Retrieval"):
        script(page(503)).ask("readiness")
    with pytest.raises(APIError, match=r"redirects to https://x\.test/; set base_url"):
        script(page(308, location="https://x.test/")).ask("galleries")


@pytest.mark.parametrize(
    ("told", "code", "kind", "message"),
    [
        ({"message": "quota"}, "http_400", "invalid_request_error", "quota"),
        ({"message": "quota", "code": None}, "http_400", "invalid_request_error", "quota"),
        ({"message": "quota", "code": 17, "type": "t"}, "http_400", "t", "quota"),
        ({"message": None, "code": "c"}, "http_400", "invalid_request_error", "Bad Request"),
    ],
)
def test_what_an_error_of_a_gateway_lacks_is_filled_in(script, told, code, kind, message) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        script(answer(400, {"error": told})).ask("galleries")
    assert (caught.value.code, caught.value.type, caught.value.param) == (code, kind, None)
    assert "None" not in str(caught.value)


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (lambda request: httpx.Response(200, content=DEEP), AnswerError),
        (lambda request: httpx.Response(503, content=DEEP), UnavailableError),
        (answer(503, {}, retry_after="Thu, 01 Jan 99999999999 11:00:00 GMT"), UnavailableError),
        (answer(200, {**FOUND, "took_ms": {**FOUND["took_ms"], "queue": 10**400}}), AnswerError),
        (
            answer(200, {**FOUND, "hits": [{**FOUND["hits"][0], "embedding": [10**400]}]}),
            AnswerError,
        ),
    ],
)
def test_whatever_comes_back_is_an_error_of_the_one_tree(script, made, kind) -> None:
    with pytest.raises(kind):
        script(made).ask("search", "photos", "a dog")
    assert script(made).ask("is_ready") is False


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (page(200), "the answer is no JSON but text/html"),
        (answer(200, []), "answer is a list, not an object"),
        (answer(200, {}), "answer has no 'gallery'"),
        (answer(200, {**FOUND, "hits": {}}), "answer.hits is a dict, not a list"),
        (answer(200, {**FOUND, "hits": [{"id": "a"}]}), "answer.hits.0 has no 'score'"),
        (
            answer(200, {**FOUND, "hits": [{"id": "a", "score": "1", "uri": "u"}]}),
            "answer.hits.0.score is a str, not a number",
        ),
        (
            answer(200, {**FOUND, "hits": [{"id": "a", "score": True, "uri": "u"}]}),
            "answer.hits.0.score is a bool, not a number",
        ),
    ],
)
def test_a_success_of_another_shape_is_told_by_its_first_fault(script, made, words) -> None:
    with pytest.raises(AnswerError, match=words):
        script(made).ask("search", "photos", "a dog")


def test_fields_of_a_newer_server_are_passed_over(script) -> None:
    hit = {**FOUND["hits"][0], "colour": "red", "moment": None}
    took = {**FOUND["took_ms"], "rerank": 3.0}
    body = {**FOUND, "hits": [hit], "took_ms": took, "trace": {"a": [1]}}
    found = script(answer(200, body)).ask("search", "photos", "a dog")
    assert (found.hits[0].id, found.hits[0].score, found.took_ms.total) == ("a.jpg", 0.5, 2.0)
    with pytest.raises(AttributeError):
        found.hits[0].score = 1.0


def spoken(caught: BaseException) -> str:
    """All that an error and its causes would print."""
    return "".join(traceback.format_exception(caught)) + repr(caught) + repr(vars(caught))


def test_the_key_is_sent_and_never_told(script, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    failures = (httpx.ConnectError("refused"), error(401), error(503), page(500), page(200))
    for failure in failures:
        server = script(failure)
        with pytest.raises(CotsError) as caught:
            server.ask("search", "photos", "a dog", options={"api_key": KEY})
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in spoken(caught.value)
    assert "again in" in caplog.text
    assert KEY not in caplog.text
    with Client(URL, api_key=KEY) as client:
        assert repr(client) == f"Client('{URL}')"
    assert repr(AsyncClient(URL, api_key=KEY)) == f"AsyncClient('{URL}')"


def test_the_words_of_a_query_are_not_logged(script, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    script(error(503), answer()).ask("search", "photos", "very private words")
    assert "again in" in caplog.text
    assert "private" not in caplog.text


def test_a_real_server_takes_the_key_and_refuses_others(serve, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    url = serve(api_key_sha256=(hashlib.sha256(KEY.encode()).hexdigest(),)).url
    with Client(url, api_key=KEY) as client:
        assert len(client.galleries()) == 2
    with Client(url, api_key="another") as client, pytest.raises(AuthenticationError) as caught:
        client.galleries()
    assert caught.value.code == "invalid_api_key"
    with Client(url) as client:
        assert client.is_live()
        assert client.is_ready()
    assert KEY not in caplog.text


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY} x", f"{KEY}ü"])
def test_a_key_that_no_header_carries_is_refused_unspoken(key) -> None:
    with pytest.raises(InputError, match="api_key") as caught:
        Client(URL, api_key=key)
    assert KEY not in spoken(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000", "give something like http://127.0.0.1:8000"),
        ("ftp://localhost", "give something like"),
        ("http://", "give something like"),
        ("http://a:b:c", "base_url is no address"),
        (f"http://me:{KEY}@localhost", "give the key as api_key"),
        (f"me:{KEY}@localhost", "give the key as api_key"),
        (f"http://me:{KEY}/@localhost", "base_url"),
        ("http://localhost/?a=b", "leave out what follows"),
        ("http://localhost/v1/", "leave out /v1"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_secrets(url, words) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Client(url)
    assert KEY not in spoken(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"http://photos.test/?api_key={KEY}",
        f"http://photos.test/#{KEY}",
        f"http://photos.test/{KEY}/v1",
        f"ftp://photos.test/{KEY}",
        f"{KEY}",
        f"{KEY}:8000",
        f"http:{KEY}",
    ],
)
def test_of_an_address_that_is_refused_only_the_host_is_told(url, monkeypatch) -> None:
    with pytest.raises(InputError, match="base_url") as caught:
        Client(url)
    assert ("photos.test" in str(caught.value)) == ("photos.test" in url)
    assert KEY not in spoken(caught.value)
    monkeypatch.setenv("COTS_URL", url)
    with pytest.raises(InputError) as again:
        AsyncClient()
    assert KEY not in spoken(again.value)


def test_an_empty_key_turns_off_that_of_the_environment(script, monkeypatch) -> None:
    monkeypatch.setenv("COTS_API_KEY", KEY)
    server = script(answer(200, {"galleries": []}))
    server.ask("galleries", options={"api_key": ""})
    assert "authorization" not in server.requests[0].headers
    server.ask("galleries")
    assert server.requests[1].headers["authorization"] == f"Bearer {KEY}"


def test_address_and_key_come_from_the_environment(monkeypatch) -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"galleries": []})

    def ask(*arguments: str, **options: str) -> httpx.Request:
        transport = httpx.MockTransport(handle)
        with Client(*arguments, transport=transport, **options) as client:
            assert client.galleries() == ()
        return seen[-1]

    for name in ("COTS_URL", "COTS_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert str(ask().url) == "http://127.0.0.1:8000/v1/galleries"
    assert "authorization" not in seen[-1].headers
    monkeypatch.setenv("COTS_URL", "https://photos.test/cots/")
    monkeypatch.setenv("COTS_API_KEY", KEY)
    assert str(ask().url) == "https://photos.test/cots/v1/galleries"
    assert seen[-1].headers["authorization"] == f"Bearer {KEY}"
    assert str(ask("http://other.test", api_key="k").url) == "http://other.test/v1/galleries"
    assert seen[-1].headers["authorization"] == "Bearer k"
