"""What the address answers while model and galleries load: alive, and not ready yet.

It is light, for it also runs in the parent of several workers, which loads nothing itself.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

_REASON = "the model and the galleries are still loading"
_END_S = 5.0


@contextlib.contextmanager
def waiting_room(listener: socket.socket) -> Iterator[None]:
    """Answer on a listener, from a thread, while this lasts; whoever comes later waits in line.

    Args:
        listener: from `service.server.bind`; it stays open.
    """
    config = uvicorn.Config(
        _answer, http="h11", lifespan="off", log_config=None, access_log=False, server_header=False
    )
    server = uvicorn.Server(config)
    own = listener.dup()  # uvicorn closes what it is given
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [own]}, name="waiting-room", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_END_S)
        own.close()  # uvicorn does not, if it was told to end before it had begun


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    del receive
    if scope["type"] != "http":
        return
    status, body = _body(scope["path"])
    data = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
        (b"x-request-id", uuid.uuid4().hex.encode()),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _body(path: str) -> tuple[int, dict[str, Any]]:
    match path:
        case "/livez":
            return 200, {"status": "ok", "reasons": [], "warnings": []}
        case "/readyz":
            return 503, {"status": "unavailable", "reasons": [_REASON], "warnings": []}
    message = f"{_REASON}; try again after the Retry-After seconds"
    error = {"message": message, "type": "server_error", "param": None, "code": "not_ready"}
    return 503, {"error": error}
