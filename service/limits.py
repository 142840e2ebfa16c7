"""The body limit, enforced while the body streams in, with or without a content-length."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ApiError, error_response


class BodyLimit:
    """Answers 413 as soon as a body is known to be too large, and 408 when it comes too slowly."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > self._max_bytes:
            await error_response(self._too_large())(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
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
            received_bytes += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received_bytes > self._max_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> ApiError:
        message = f"the request body is larger than {self._max_bytes:,} bytes; send a smaller one"
        return ApiError(413, "body_too_large", message)

    def _too_slow(self) -> ApiError:
        message = f"the request body did not arrive within {self._timeout_s:g} s; send it faster"
        return ApiError(408, "body_timeout", message)
