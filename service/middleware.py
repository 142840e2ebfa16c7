"""What wraps every request: id, log line, last resort for errors, headers, HEAD, keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ApiError, error_response, internal
from service.settings import OPEN_PATHS

log = logging.getLogger("service.requests")

_REQUEST_ID = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}


class RequestLog:
    """Gives each request an id, logs it once, and turns what nobody caught into a plain 500.

    The text of queries is not logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_s = time.monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(arrived_s=begun_s, request_id=request_id)
        status = 0

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, numbered)
        except Exception:  # a bug: the client gets a plain 500, the log gets the trace
            log.exception("unhandled exception", extra={"request_id": request_id})
            if not status:
                await error_response(internal())(scope, receive, numbered)
            else:
                raise
        finally:
            _log_request(scope, status, request_id, begun_s)


def _log_request(scope: Scope, status: int, request_id: str, begun_s: float) -> None:
    client = scope.get("client")
    fields = {
        "request_id": request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "duration_ms": round((time.monotonic() - begun_s) * 1000, 3),
        "client": client[0] if client else None,
    }
    log.info("request", extra=fields)


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
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
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
        await self._app({**scope, "method": "GET"}, receive, bodiless)


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
