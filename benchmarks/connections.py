"""Requests at the cost of their bytes: kept connections that post JSON and read an answer whole.

A client library takes nearly half a millisecond of a core for each request, twice as much as this,
which is missing from a server on the same cores: a small model takes five for a sentence.
"""

from __future__ import annotations

import asyncio
import re
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_END = b"\r\n\r\n"


class UnreadableError(ConnectionError):
    """The server answered with something that is not read here."""


class Connections:
    """As many connections to a server as there are requests at a time; to be used in one loop.

    The url names an address, not a host with several.
    """

    def __init__(self, url: str, *, answer_s: float) -> None:
        """Connect to nobody yet.

        Args:
            url: of the server; `http` only.
            answer_s: longest time for an answer.
        """
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"{url} is not http://HOST[:PORT]")
        self._address = (parts.hostname, parts.port or 80)
        self._head = f"Host: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
        self._answer_s = answer_s
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            ConnectionRefusedError: if nobody listens.
            OSError: if the connection was lost before the answer was there, or the answer is none
                that this reads; if there was none in time it is a TimeoutError.
        """
        connection = await self._connection()
        head = f"POST {path} HTTP/1.1\r\n{self._head}{len(body)}\r\n\r\n"
        status, answer, is_kept = await connection.exchange(head.encode() + body, self._answer_s)
        if is_kept:
            self._idle.append(connection)
        else:
            connection.close()
        return status, answer

    def close(self) -> None:
        """Close those that are kept."""
        for connection in self._idle:
            connection.close()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        async with asyncio.timeout(self._answer_s):
            loop = asyncio.get_running_loop()
            _, made = await loop.create_connection(_Connection, *self._address)
        return made


class _Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[tuple[int, bytes, bool]] | None = None
        self._received = bytearray()

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("closed before the answer was there"))

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # an answer that nobody asked for is not taken for the next one
            return
        self._received += data
        at = self._received.find(_END)
        if at < 0:
            return
        head = bytes(self._received[: at + len(_END)])
        status, length = _STATUS.match(head), _LENGTH.search(head)
        if status is None or length is None:
            self._fail(UnreadableError(f"an answer without a length: {head[:80]!r}"))
            return
        missing = len(head) + int(length[1]) - len(self._received)
        if missing < 0:
            self._fail(UnreadableError(f"{-missing} bytes more than its length"))
        elif missing == 0:
            body = bytes(self._received[len(head) :])
            self._received.clear()
            self._answer.set_result((int(status[1]), body, _CLOSES.search(head) is None))

    async def exchange(self, request: bytes, answer_s: float) -> tuple[int, bytes, bool]:
        """Status, body, and whether the connection is kept."""
        loop = asyncio.get_running_loop()
        if not self.is_open:
            raise ConnectionResetError("closed before the request was sent")
        self._answer = loop.create_future()
        timer = loop.call_later(answer_s, self._fail, TimeoutError(f"no answer in {answer_s} s"))
        self._transport.write(request)
        try:
            return await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        self._transport.close()

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
