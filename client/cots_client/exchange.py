"""What to do after each try of a call: the result, another try after a while, or an error.

This is the whole of the retries, without a clock, a socket or an event loop of its own: the two
clients send the request it makes, tell it what came of it, and wait as long as it says.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import httpx

from cots_client.errors import (
    CotsError,
    DeadlineError,
    InputError,
    TransportError,
    api_error,
    is_for_now,
    place_of,
)
from cots_client.wire import Call

log = logging.getLogger("cots_client")

T = TypeVar("T")

_CONNECT_S = 5.0
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 8.0
_LONGEST_RETRY_AFTER_S = 60.0
_LOST = frozenset({502, 504})
"""Statuses after which nobody knows."""
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_HOPELESS = (
    httpx.DecodingError,
    httpx.LocalProtocolError,
    httpx.TooManyRedirects,
    httpx.UnsupportedProtocol,
)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long and how often a call is tried.

    Attributes:
        timeout_s: for all tries of a call and the waits between them.
        max_retries: tries after the first.
        clock: monotonic seconds.
        uniform: a random number between two.
    """

    timeout_s: float = 30.0
    max_retries: int = 3
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = random.uniform

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf"):
            raise InputError(f"timeout_s is {self.timeout_s}; give seconds, more than 0")
        if self.max_retries < 0:
            raise InputError(f"max_retries is {self.max_retries}; give 0 or more")


@dataclass(frozen=True)
class Done(Generic[T]):
    """The call is over, and this came of it."""

    value: T


@dataclass(frozen=True)
class Wait:
    """Send the request again, this much later."""

    seconds: float


class Exchange(Generic[T]):
    """The tries of one call."""

    def __init__(self, call: Call[T], policy: RetryPolicy) -> None:
        self.call = call
        self._policy = policy
        self._timeout_s = policy.timeout_s if call.timeout_s is None else call.timeout_s
        if not 0 < self._timeout_s < float("inf"):
            raise InputError(f"timeout_s is {self._timeout_s}; give seconds, more than 0")
        self._deadline_s = policy.clock() + self._timeout_s
        self._num_tries = 0
        self._place = ""
        self._error: CotsError | None = None

    def request(
        self,
        http: httpx.Client | httpx.AsyncClient,
        headers: Mapping[str, str] | None = None,
        *,
        pause_s: float | None = None,
    ) -> httpx.Request:
        """The request of the next try; it may take what is left of the time.

        Args:
            http: knows the address of the server and the key.
            headers: beside those of the call.
            pause_s: of the server, instead of what is left.

        Raises:
            CotsError: the last one, if no time is left.
            InputError: if the client is closed, or the address longer than there are.
        """
        if http.is_closed:
            raise InputError("the client is closed; make another")
        left_s = self._deadline_s - self._policy.clock()
        if left_s <= 0 and self._error is not None:
            raise self._error
        self._num_tries += 1
        connect_s = min(left_s, _CONNECT_S)
        timeout = httpx.Timeout(left_s, connect=connect_s, read=pause_s or left_s)
        request = self._built(http, headers or {}, timeout)
        self._place = place_of(request)
        return request

    def _built(
        self,
        http: httpx.Client | httpx.AsyncClient,
        headers: Mapping[str, str],
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        call = self.call
        more = {} if call.body is None else {"Content-Type": "application/json"}
        try:
            return http.build_request(
                call.method,
                call.path,
                params=dict(call.params) or None,
                headers={**more, **call.headers, **headers},
                content=call.body,
                data=dict(call.form) or None,
                files=None if call.file is None else {"file": ("picture", call.file)},
                timeout=timeout,
            )
        except httpx.InvalidURL as err:
            message = f"the request has no address ({err}); give a shorter name of gallery or item"
            raise InputError(message) from err

    def begins(self, response: httpx.Response) -> None:
        """Before an answer is read: what is wanted at once is read no longer than there is time."""
        if self.call.at_once:
            response.stream = _Bounded(
                response.stream, functools.partial(self._check_time, response)
            )

    def _check_time(self, response: httpx.Response) -> None:
        if self._policy.clock() > self._deadline_s:
            raise httpx.ReadTimeout("the answer trickles", request=response.request)

    def answered(self, response: httpx.Response) -> Done[T] | Wait:
        """What to do with an answer that has been read.

        Raises:
            APIError: if it is one that another try does not mend, or there is no other try.
            AnswerError: if it cannot be read.
        """
        status, call = response.status_code, self.call
        if status in call.accepts:
            return Done(call.read(response))
        error = api_error(response, call.renumber)
        is_busy = status == 429 or (status == 503 and is_for_now(response))  # nothing was done
        again = is_busy or (status in _LOST and call.may_repeat)
        return self._again(error, possible=again, retry_after_s=error.retry_after_s)

    def failed(self, err: httpx.RequestError) -> Wait:
        """What to do if there was no answer.

        Raises:
            TransportError: if another try does not mend it, or there is none.
        """
        sent = not isinstance(err, _NOT_SENT)
        again = not isinstance(err, _HOPELESS) and (self.call.may_repeat or not sent)
        error = self._transport_error(err, sent=sent)
        error.__cause__ = err
        return self._again(error, possible=again)

    def renew(self) -> None:
        """Count anew: the last try brought something."""
        self._num_tries = 1
        self._deadline_s = self._policy.clock() + self._timeout_s

    def _again(
        self, error: CotsError, *, possible: bool, retry_after_s: float | None = None
    ) -> Wait:
        self._error = error
        num_retries = self._num_tries - 1
        if self._num_tries > 1:
            error.add_note(f"after {self._num_tries} tries")
        if not possible or self.call.at_once or num_retries >= self._policy.max_retries:
            raise error
        wait_s = self._wait_s(num_retries, retry_after_s)
        if self._policy.clock() + wait_s >= self._deadline_s:
            raise error
        log.info("%s: %s; again in %.2f s", self._place, type(error).__name__, wait_s)
        return Wait(wait_s)

    def _wait_s(self, num_retries: int, retry_after_s: float | None) -> float:
        """Exponential with full jitter, on top of what the server asks for."""
        longest_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**num_retries)
        asked_s = min(retry_after_s or 0.0, _LONGEST_RETRY_AFTER_S)
        return asked_s + self._policy.uniform(0.0, longest_s)

    def _transport_error(self, err: httpx.RequestError, *, sent: bool) -> TransportError:
        reason = str(err) or type(err).__name__
        if isinstance(err, httpx.PoolTimeout):
            message = f"{self._place}: no connection became free; use a client for each thread"
            return DeadlineError(message)
        if not sent:
            message = f"{self._place}: cannot connect ({reason}); is the server running, and is "
            return TransportError(f"{message}base_url (COTS_URL) right?")
        if isinstance(err, httpx.TimeoutException):
            message = f"{self._place}: no answer within {self._timeout_s:g} s; ask for less, or "
            return DeadlineError(f"{message}give more timeout_s")
        unknown = "" if self.call.may_repeat else "; the server may have done it all the same"
        return TransportError(f"{self._place}: the connection broke ({reason}){unknown}")


class _Bounded(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body, each piece of which `check` lets pass or ends."""

    def __init__(
        self, stream: httpx.SyncByteStream | httpx.AsyncByteStream, check: Callable[[], None]
    ) -> None:
        self._stream, self._check = stream, check

    def __iter__(self) -> Iterator[bytes]:
        for chunk in cast("httpx.SyncByteStream", self._stream):
            self._check()
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in cast("httpx.AsyncByteStream", self._stream):
            self._check()
            yield chunk

    def close(self) -> None:
        cast("httpx.SyncByteStream", self._stream).close()

    async def aclose(self) -> None:
        await cast("httpx.AsyncByteStream", self._stream).aclose()
