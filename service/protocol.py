"""One connection, by uvicorn and h11, with what a service of JSON needs besides."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import ApiError, error_body
from service.schemas import ErrorResponse

_MESSAGE = (
    "this is no HTTP/1.1 request that can be read: its head is too long, or it breaks the rules of "
    "the protocol; see what lies between the client and this server"
)


class Protocol(H11Protocol):
    """Ends the work for a client that has left, and says in JSON what cannot be read."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left: what its request has begun has no use, if the answer has not."""
        cycle = self.cycle
        super().connection_lost(exc)
        if cycle is not None and not cycle.response_started and not cycle.more_body:
            _give_up(cycle.scope)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, and close."""
        err = ApiError(400, "bad_request", _MESSAGE)
        body = ErrorResponse(error=error_body(err)).model_dump_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", uuid.uuid4().hex.encode()),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()


def _give_up(scope: Mapping[str, Any]) -> None:
    """Cancel the task that answers, as `service.middleware.RequestLog` has noted it."""
    state = scope["state"]
    task = state.get("task")
    if task is not None:
        state["left"] = True
        task.cancel()
