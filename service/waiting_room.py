"""What the address answers while model and galleries load: alive, and not ready yet.

It is light, for it also runs in the parent of several workers, which loads nothing itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import socket
import threading
import uuid
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

log = logging.getLogger("service.requests")

_REASON = "the model and the galleries are still loading"
_NAME = "waiting-room"
_SCRIPT = "setTimeout(() => location.reload(), 1000);"  # a refresh by HTML would stop at a fragment
_STYLE = "body { display: grid; place-items: center; min-height: 90vh; font: 16px system-ui; }"
_PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>COTS Retrieval</title>
<style>{_STYLE}</style>
<script>{_SCRIPT}</script>
<p role="status">{_REASON[0].upper()}{_REASON[1:]}. The page comes by itself.</p>
</html>
"""


def _source(text: str) -> str:
    """What a policy calls an inline script or style that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; "
    "frame-ancestors 'none'"
).encode()
_TICK_S = 0.02
_LINGER_S = 5.0
"""Longest time that whoever is connected when loading ends is still waited for."""

_MOST_BODY_BYTES = 32 * 1024 * 1024
_BODY_S = 5.0


class WaitingRoom:
    """Answers on a listener, from a thread, until it is closed; the listener stays open.

    with contextlib.closing(WaitingRoom(listener)):    # from `service.server.bind`
        ...
    """

    def __init__(self, listener: socket.socket) -> None:
        """Open it."""
        self._server = _Server(_config())
        own = listener.dup()  # uvicorn closes what it is given
        self._thread = threading.Thread(target=self._run, args=(own,), name=_NAME, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept nobody any more; who is connected is still answered, in the background."""
        self._server.should_exit = True
        self._server.deaf.wait(_LINGER_S)

    def _run(self, own: socket.socket) -> None:
        quiet = _Quiet()
        logger = logging.getLogger("uvicorn.error")
        logger.addFilter(quiet)
        try:
            self._server.run(sockets=[own])
        finally:
            logger.removeFilter(quiet)
            own.close()  # uvicorn does not, if it was told to end before it had begun
            self._server.deaf.set()


def _config() -> uvicorn.Config:
    return uvicorn.Config(
        _answer,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )


class _Server(uvicorn.Server):
    """Lets those speak, at the end, that it has let in.

    Attributes:
        deaf: set once it accepts nobody any more.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.deaf = threading.Event()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer who is connected, then end as uvicorn does."""
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        self.deaf.set()
        for _ in range(int(_LINGER_S / _TICK_S)):
            if not self.server_state.connections:
                break
            await asyncio.sleep(_TICK_S)
        await super().shutdown(sockets)


class _Quiet(logging.Filter):
    """Keeps what uvicorn says of this server out of the log: another one is about to begin."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.threadName != _NAME or record.levelno >= logging.WARNING


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    await _read_all(receive)
    if scope["path"] == "/":  # a person, with a browser
        status, kind, data = 503, b"text/html; charset=utf-8", _PAGE.encode()
    else:
        status, body = _body(scope["path"])
        kind, data = b"application/json", json.dumps(body).encode()
    request_id = uuid.uuid4().hex
    fields = {"request_id": request_id, "method": scope["method"], "path": scope["path"]}
    log.info("request while loading", extra={**fields, "status": status})
    headers = [
        (b"content-type", kind),
        (b"content-security-policy", _POLICY),
        (b"x-content-type-options", b"nosniff"),
        (b"content-length", str(len(data)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
        (b"x-request-id", request_id.encode()),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def _read_all(receive: Receive) -> None:
    """Take the body: many clients do not look for an answer before they have sent it."""
    left_bytes = _MOST_BODY_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_BODY_S):
            while left_bytes > 0:
                message = await receive()
                if not message.get("more_body"):
                    return
                left_bytes -= len(message.get("body", b""))


def _body(path: str) -> tuple[int, dict[str, Any]]:
    match path:
        case "/livez":
            return 200, {"status": "ok", "reasons": [], "warnings": []}
        case "/readyz":
            return 503, {"status": "unavailable", "reasons": [_REASON], "warnings": []}
    message = f"{_REASON}; try again after the Retry-After seconds"
    error = {"message": message, "type": "server_error", "param": None, "code": "not_ready"}
    return 503, {"error": error}
