"""One connection, by uvicorn and h11, with what a service of JSON needs besides."""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

import h11
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import ApiError, error_body
from service.metrics import Metrics
from service.schemas import ErrorResponse

log = logging.getLogger("service.requests")

WAIT_S = 30.0
"""Longest time for the head of a request, from the connection or the head's first byte on, and for
the rest of a body whose request has been answered already."""

STALL_S = 60.0
"""Time that a connection may stand still, in all, while its client reads nothing."""

_REGAINED_S = 8.0
"""So much of it for each piece read (`PIECE_BYTES`): who reads 32 KiB/s may read for ever."""

MOST_HEAD_BYTES = 64 * 1024
_UNREADABLE = (
    "this is no HTTP/1.1 request that can be read: it breaks the rules of the protocol; see what "
    "lies between the client and this server"
)


class Protocol(H11Protocol):
    """Ends the work for a client that has left, waits for none forever, and answers in JSON.

    uvicorn times only connections between two requests: it would wait for the head of a first
    request, and for a client that reads nothing, as long as the client likes.
    """

    _wait: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _patience_s = STALL_S
    _stalled_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; its request is to come soon."""
        super().connection_made(transport)
        self._patience_s = STALL_S
        self._time_client()

    def data_received(self, data: bytes) -> None:
        """Read on, and see what the client still owes."""
        super().data_received(data)
        self._time_client()

    def on_response_complete(self) -> None:
        """The request is answered, maybe before all of it has come."""
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE:  # uvicorn times who may send another
            self._time_client()

    def pause_writing(self) -> None:
        """The client reads slower than it is answered."""
        super().pause_writing()
        self._stalled_s = self.loop.time()
        self._stall = self.loop.call_later(self._patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read what it was sent."""
        if self._stall is not None:
            stood_s = self.loop.time() - self._stalled_s
            self._patience_s = min(STALL_S, self._patience_s - stood_s + _REGAINED_S)
        self._stop_stall()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left: what its request has begun has no use, if the answer has not."""
        self._stop_wait()
        self._stop_stall()
        cycle = self.cycle
        super().connection_lost(exc)
        if cycle is not None and not cycle.response_started and not cycle.more_body:
            _give_up(cycle.scope)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, and close; called while h11's error is handled."""
        fault = sys.exception()
        if getattr(fault, "error_status_hint", 400) == 431:
            message = f"the head is longer than {MOST_HEAD_BYTES:,} bytes; send a shorter one"
            self._refuse(ApiError(431, "head_too_large", message))
        else:
            self._refuse(ApiError(400, "bad_request", _UNREADABLE))

    def _time_client(self) -> None:
        """Time a client that owes something nobody else times."""
        owes_head = self.conn.their_state is h11.IDLE
        owes_rest = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if not owes_head and not owes_rest:
            self._stop_wait()
        elif self._wait is None:
            self._wait = self.loop.call_later(WAIT_S, self._end_wait)

    def _stop_wait(self) -> None:
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _end_wait(self) -> None:
        self._wait = None
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            message = f"the head of the request did not arrive within {WAIT_S:g} s; send it faster"
            self._refuse(ApiError(408, "head_timeout", message))
            return
        self.transport.close()  # a browser that connected for later, or an answered request

    def _refuse(self, err: ApiError) -> None:
        """Answer, if that can still be, what came to no route, and close."""
        request_id = uuid.uuid4().hex
        client = self.client[0] if self.client else None
        fields = {"request_id": request_id, "status": err.status, "code": err.code}
        log.info("unreadable request", extra={**fields, "client": client})
        metrics = cast("Metrics", cast("FastAPI", self.config.app).state.metrics)
        metrics.request_begins()
        metrics.request_ends(
            method="none", route="none", status=err.status, seconds=0.0, stages={}, reason=err.code
        )
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._answer(err, request_id)
        self.transport.close()

    def _answer(self, err: ApiError, request_id: str) -> None:
        body = ErrorResponse(error=error_body(err)).model_dump_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", request_id.encode()),
        ]
        reason = HTTPStatus(err.status).phrase.encode()
        for event in (
            h11.Response(status_code=err.status, headers=headers, reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))


def _give_up(scope: Mapping[str, Any]) -> None:
    """Cancel the task that answers, as `service.middleware.RequestLog` has noted it."""
    state = scope["state"]
    task = state.get("task")
    if task is not None:
        state["left"] = True
        task.cancel()
