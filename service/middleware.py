"""What wraps every request: id, log line, figures, last resort for errors, headers, HEAD, keys."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ApiError, error_response, internal, to_api_error
from service.jobs import PoolClosedError
from service.logs import current_request_id
from service.metrics import Metrics
from service.settings import OPEN_PATHS
from service.stages import StageTimes, measure_stages

log = logging.getLogger("service.requests")

_REQUEST_ID = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")
_ROUTING = ("route", "fastapi")
"""Keys that tell, after the routing, which route it was."""
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
]

_numbers = random.Random()
"""Seeded by the system, which need not be asked for each request: ids are names, not secrets."""


class RequestLog:
    """Gives each request an id, logs and counts it once, and answers what nobody caught by a 500.

    The words of queries, and whatever else came in a body or a query string, are not logged.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_s = time.monotonic()
        method = scope["method"]  # later parts may see HEAD as GET
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state.update(arrived_s=begun_s, request_id=request_id, task=asyncio.current_task())
        current_request_id.set(request_id)
        stages = measure_stages()
        status = 0

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if _is_draining(scope):  # so that no request comes on a connection about to close
                    headers["Connection"] = "close"
            await send(message)

        self._metrics.request_begins()
        try:
            await self._app(scope, receive, numbered)
        except asyncio.CancelledError:
            if state.get("left"):  # see `service.protocol`: nobody is there to be answered
                state["error_code"] = "client_closed_request"
            elif status:
                raise
            else:  # the time that the end of the server gives to requests is over
                await error_response(to_api_error(PoolClosedError()))(scope, receive, numbered)
        except Exception:  # a bug: the client gets a plain 500, the log gets the trace
            log.exception("unhandled exception")
            if status:
                raise
            await error_response(internal())(scope, receive, numbered)
        finally:
            answered = Answered(method, _route(scope), status, time.monotonic() - begun_s)
            self._end(scope, answered, stages)

    def _end(self, scope: Scope, answered: Answered, stages: StageTimes) -> None:
        reason = scope["state"].get("error_code")
        if reason is None and answered.status >= 400:
            reason = "other"  # an answer in the shape of another protocol
        client = scope.get("client")
        fields = {
            "request_id": scope["state"]["request_id"],
            "method": answered.method,
            "path": scope["path"],
            "route": answered.route,
            "status": answered.status,
            "duration_ms": round(answered.seconds * 1000, 3),
            **{f"{name}_ms": round(spent * 1000, 3) for name, spent in stages.seconds.items()},
            "client": client[0] if client else None,
        }
        log.info("request", extra=fields if reason is None else {**fields, "code": reason})
        self._metrics.request_ends(
            method=answered.method,
            route=answered.route,
            status=answered.status,
            seconds=answered.seconds,
            stages=stages.seconds,
            reason=reason,
        )


@dataclass(frozen=True)
class Answered:
    """How a request ended; status 0 if the client left before there was an answer."""

    method: str
    route: str
    status: int
    seconds: float


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.match(given) else f"{_numbers.getrandbits(128):032x}"


def _route(scope: Scope) -> str:
    """Template of the path that was routed to; `none` if the request came to no route."""
    included = scope.get("fastapi", {}).get("effective_route_context")
    for found in (included, scope.get("route")):
        path = getattr(found, "path_format", None) or getattr(found, "path", None)
        if path:
            return str(path)
    document = getattr(scope["app"], "openapi_url", None)  # whose route does not tell its path
    return scope["path"] if scope["path"] == document else "none"


def _is_draining(scope: Scope) -> bool:
    service = getattr(scope["app"].state, "service", None)
    return service is not None and service.readiness.draining


class SecurityHeaders:
    """Adds the headers that a response does not set itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                own = {name.lower() for name, _ in headers}
                missing = [header for header in _HEADERS if header[0] not in own]
                message = {**message, "headers": [*headers, *missing]}
            await send(message)

        await self._app(scope, receive, guarded)


class HeadAsGet:
    """Answers HEAD with the headers of GET; `state.head` tells a route that no body is needed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        scope.setdefault("state", {})["head"] = True
        inner = {**scope, "method": "GET"}  # the server goes by the method in its own
        try:
            await self._app(inner, receive, bodiless)
        finally:
            scope.update({key: inner[key] for key in _ROUTING if key in inner})


class ApiKeys:
    """Asks for a key on every path but `/livez` and `/readyz`, if any key is configured.

    Programs send `Authorization: Bearer KEY`. Browsers may send the key as the password of HTTP
    Basic, which lets a person open the web page.
    """

    def __init__(self, app: ASGIApp, *, sha256_hex: Sequence[str]) -> None:
        self._app = app
        self._digests = [bytes.fromhex(digest) for digest in sha256_hex]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or not self._digests or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if self._accepts(Headers(scope=scope).get("authorization", "")):
            await self._app(scope, receive, send)
            return
        message = "no valid API key; send it as: Authorization: Bearer KEY"
        headers = {"WWW-Authenticate": 'Bearer, Basic realm="COTS Retrieval", charset="UTF-8"'}
        refusal = ApiError(401, "invalid_api_key", message, headers=headers)
        await error_response(refusal)(scope, receive, send)

    def _accepts(self, authorization: str) -> bool:
        digest = hashlib.sha256(_key_of(authorization)).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def _key_of(authorization: str) -> bytes:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
