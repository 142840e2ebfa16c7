"""One connection, by uvicorn and h11, with what a service of JSON needs besides."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import ApiError, error_body
from service.schemas import ErrorResponse

HEAD_S = 30.0
"""Longest time for the head of a request, from the connection or the head's first byte on."""

STALL_S = 60.0
"""Longest time for a client to read the piece of an answer that is on its way; see `PIECE_BYTES`
of `service.limits`."""

_UNREADABLE = (
    "this is no HTTP/1.1 request that can be read: its head is too long, or it breaks the rules of "
    "the protocol; see what lies between the client and this server"
)


class Protocol(H11Protocol):
    """Ends the work for a client that has left, waits for none forever, and answers in JSON.

    uvicorn times only connections that have had an answer: it would wait for the head of a first
    request, and for a client that reads nothing, as long as the client likes.
    """

    _head: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; its request is to come soon."""
        super().connection_made(transport)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        """Read on, and see whether a head has begun, or is complete."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._time_head()
        else:
            self._stop_head()

    def pause_writing(self) -> None:
        """The client reads slower than it is answered."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read what it was sent."""
        self._stop_stall()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left: what its request has begun has no use, if the answer has not."""
        self._stop_head()
        self._stop_stall()
        cycle = self.cycle
        super().connection_lost(exc)
        if cycle is not None and not cycle.response_started and not cycle.more_body:
            _give_up(cycle.scope)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, and close."""
        self._refuse(ApiError(400, "bad_request", _UNREADABLE))

    def _time_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_S, self._end_head)

    def _stop_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _end_head(self) -> None:
        self._head = None
        if self.transport.is_closing():
            return
        if not self.conn.trailing_data[0]:  # a browser that connected for later
            self.transport.close()
            return
        message = f"the head of the request did not arrive within {HEAD_S:g} s; send it faster"
        self._refuse(ApiError(408, "head_timeout", message))

    def _refuse(self, err: ApiError) -> None:
        body = ErrorResponse(error=error_body(err)).model_dump_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", uuid.uuid4().hex.encode()),
        ]
        reason = HTTPStatus(err.status).phrase.encode()
        for event in (
            h11.Response(status_code=err.status, headers=headers, reason=reason),
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
