"""Clients of the real service, of `tests/service`, and of a server that follows a script."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from cots_client import AsyncClient, Client
from service.app import create_app
from service.settings import Settings
from service.state import Resources
from tests.compat.conftest import mixed as mixed
from tests.service.conftest import Running
from tests.service.conftest import checkpoint as checkpoint
from tests.service.conftest import encoder as encoder
from tests.service.conftest import pictures as pictures
from tests.service.conftest import registry as registry
from tests.service.conftest import root as root
from tests.service.conftest import serve as serve
from tests.service.conftest import server as server

URL = "http://cots.test:8000"
FOUND = {
    "gallery": "photos",
    "version": "1",
    "model": "tiny",
    "took_ms": {"queue": 0.0, "encode": 1.0, "search": 1.0, "total": 2},
    "hits": [{"id": "a.jpg", "score": 0.5, "uri": "file:///a.jpg", "metadata": {}}],
}


@pytest.fixture
def cots(server: Running) -> Iterator[Client]:
    """A client of the server with the galleries `pets` and `shards`."""
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def mixed_server(serve, mixed) -> Running:
    """With the galleries `photos`, `texts` and `films`."""
    return serve(found=mixed)


@pytest.fixture
def others(mixed_server: Running) -> Iterator[Client]:
    with Client(mixed_server.url) as client:
        yield client


@pytest.fixture
def in_process(root, encoder, registry):
    """The application without a socket, and an asynchronous client of it."""

    @contextlib.asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[AsyncClient]:
        app = create_app(Settings(galleries=root, port=0, **settings), Resources(encoder, registry))
        async with (
            app.router.lifespan_context(app),
            AsyncClient("http://localhost", transport=httpx.ASGITransport(app)) as client,
        ):
            yield client

    return start


class Time:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.waits_s: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self.now_s += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


Answer = Callable[[httpx.Request], httpx.Response] | Exception


class Script:
    """A server that gives one answer after the other, the last one ever after, and its client.

    Attributes:
        requests: that came.
        time: that the client goes by; its random waits are as long as can be.
    """

    def __init__(self, kind: str, answers: tuple[Answer, ...]) -> None:
        self.requests: list[httpx.Request] = []
        self.time = Time()
        self._kind = kind
        self._answers = list(answers)

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(request)

    def ask(self, method: str, *arguments: Any, options: dict[str, Any] | None = None, **named):
        """Call a method of a client, asynchronous or not; iterators are taken to their end."""
        made = {
            "transport": httpx.MockTransport(self.handle),
            "clock": self.time.clock,
            "uniform": lambda low, high: high,
            **(options or {}),
        }
        if self._kind == "sync":
            with Client(URL, **{"sleep": self.time.sleep, **made}) as client:
                found = getattr(client, method)(*arguments, **named)
                return list(found) if method == "iter_hits" else found

        async def ask() -> Any:
            async with AsyncClient(URL, **{"sleep": self.time.sleep_async, **made}) as client:
                found = getattr(client, method)(*arguments, **named)
                return [hit async for hit in found] if method == "iter_hits" else await found

        return asyncio.run(ask())

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


@pytest.fixture(params=["sync", "async"])
def script(request) -> Callable[..., Script]:
    return lambda *answers: Script(request.param, answers)


def answer(status: int = 200, body: Any = FOUND, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: httpx.Response(status, json=body, headers=names)


def error(status: int, code: str | None = None, **headers: str) -> Answer:
    """In the shape of the service; a 503 is one that passes, unless it has another code."""
    code = code or ("shutting_down" if status == 503 else "some_code")
    body = {"message": "told by the server", "type": "some_type", "param": "query", "code": code}
    return answer(status, {"error": body}, **headers)
