"""What a request may take: the size of its body, the time to send it, memory beside others."""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.budget import Budget, Share
from service.errors import ApiError, error_response, overloaded
from service.lag import Lag
from service.settings import OPEN_PATHS

PIECE_BYTES = 256 * 1024
"""Answers go out in pieces of this size, each when the one before it is on its way."""

NEVER_REFUSED = OPEN_PATHS | {"/metrics"}
"""Who watches the server hears from it also when it is overloaded."""

CROWD = 64
"""Requests that wait for an answer; with fewer a late event loop is slow, not overloaded."""

SMALL_BODY_BYTES = 64 * 1024
"""Bodies up to this size are read however many large ones are held."""


class Limits:
    """Answers 413 as soon as a body is known to be too large, and 408 when it comes too slowly.

    Both hold with and without a content-length. Bodies beyond what may be held together get 429. So
    does, while the event loop is late, whatever comes beside `CROWD` others that wait.
    What a route enters into `request.state.held`, an `ExitStack`, ends when the answer has been
    sent.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, together_bytes: int, timeout_s: float, lag: Lag
    ) -> None:
        self._app = app
        self._lag = lag
        self._num_waiting = 0
        self._max_bytes = max_bytes
        self._bodies = Budget(together_bytes, little=SMALL_BODY_BYTES)
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._num_waiting >= CROWD and self._lag.is_late and scope["path"] not in NEVER_REFUSED:
            await error_response(overloaded())(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > self._max_bytes:
            await error_response(self._too_large())(scope, receive, send)
            return
        with contextlib.ExitStack() as held, contextlib.ExitStack() as waiting:
            self._num_waiting += 1
            waiting.callback(self._wait_ends)
            scope.setdefault("state", {})["held"] = held
            body = held.enter_context(self._bodies.share())
            in_pieces = _in_pieces(send)

            async def answer(message: Message) -> None:
                waiting.close()  # a film may be sent for hours, and takes no work
                await in_pieces(message)

            await self._app(scope, self._counted(receive, body), answer)

    def _wait_ends(self) -> None:
        self._num_waiting -= 1

    def _counted(self, receive: Receive, body: Share) -> Receive:
        received_bytes = 0
        complete = False
        latest_s = time.monotonic() + self._timeout_s

        async def counted() -> Message:
            nonlocal received_bytes, complete
            if complete:  # what comes now is only the client going away
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, latest_s - time.monotonic())):
                    message = await receive()
            except TimeoutError as err:
                raise self._too_slow() from err
            num_bytes = len(message.get("body", b""))
            received_bytes += num_bytes
            complete = not message.get("more_body", False)
            if received_bytes > self._max_bytes:
                raise self._too_large()
            body.take(num_bytes)
            return message

        return counted

    def _too_large(self) -> ApiError:
        message = f"the request body is larger than {self._max_bytes:,} bytes; send a smaller one"
        return ApiError(413, "body_too_large", message)

    def _too_slow(self) -> ApiError:
        message = f"the request body did not arrive within {self._timeout_s:g} s; send it faster"
        return ApiError(408, "body_timeout", message)


def _in_pieces(send: Send) -> Send:
    """Send no more than a piece at once, so that a client who reads slowly holds little."""

    async def in_pieces(message: Message) -> None:
        body = message.get("body", b"")
        if message["type"] != "http.response.body" or len(body) <= PIECE_BYTES:
            await send(message)
            return
        pieces = memoryview(body)
        for start in range(0, len(body), PIECE_BYTES):
            last = start + PIECE_BYTES >= len(body)
            more = message.get("more_body", False) or not last
            piece = bytes(pieces[start : start + PIECE_BYTES])
            await send({**message, "body": piece, "more_body": more})

    return in_pieces
