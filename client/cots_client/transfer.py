"""Downloads that go on where a broken connection left them, into a file that appears when whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import httpx

from cots_client import calls
from cots_client.errors import AnswerError
from cots_client.exchange import Done, Exchange, RetryPolicy, Wait
from cots_client.wire import content_range


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes its name at the end; after an error there is none.

    Raises:
        OSError: if it cannot be written.
    """
    part = Path(path).with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class Transfer:
    """An original on its way into a file.

    The time and number of tries count from the last byte that came: a film takes as long as it
    takes, and a connection that brings nothing does not.

    Args:
        gallery: of the item.
        item_id: of the item.
        policy: of retries.
        file: new and empty.
    """

    def __init__(self, gallery: str, item_id: str, policy: RetryPolicy, file: BinaryIO) -> None:
        call = calls.content(gallery, item_id, first=0, last=None)
        self._exchange = Exchange(call, policy)
        self._file = file
        self._num_bytes = 0
        self._furthest = 0
        self._size_bytes: int | None = None
        self._etag: str | None = None

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """For the whole, or for what is missing of the same original."""
        headers = {}
        if self._num_bytes and self._etag:
            headers = {"Range": f"bytes={self._num_bytes}-", "If-Range": self._etag}
        return self._exchange.request(http, headers)

    def begins(self, response: httpx.Response) -> bool:
        """Whether the body of an answer is the original; else read it and tell `answered`."""
        if response.status_code not in self._exchange.call.accepts:
            return False
        first, size_bytes = content_range(response) or (0, _length(response))
        if first not in (0, self._num_bytes):
            message = f"the server sends bytes from {first} on; {self._num_bytes} was asked for"
            raise AnswerError(message)
        self._file.seek(first)
        self._file.truncate()
        self._num_bytes, self._size_bytes = first, size_bytes
        etag = response.headers.get("etag", "")
        self._etag = None if etag.startswith("W/") else etag  # a weak one does not tell bytes
        return True

    def write(self, chunk: bytes) -> None:
        """Some more of the body."""
        self._file.write(chunk)
        self._num_bytes += len(chunk)

    def ended(self, response: httpx.Response) -> Done[None]:
        """After the last of the body.

        Raises:
            httpx.RemoteProtocolError: if it is not the last of the original.
        """
        if self._size_bytes not in (None, self._num_bytes):
            message = f"the body ended after {self._num_bytes} of {self._size_bytes} bytes"
            raise httpx.RemoteProtocolError(message, request=response.request)
        return Done(None)

    def answered(self, response: httpx.Response) -> Wait:
        """As of `Exchange`, for an answer that is not the original."""
        step = self._exchange.answered(response)
        assert isinstance(step, Wait), "begins() takes all that is accepted"
        return step

    def failed(self, err: httpx.RequestError) -> Wait:
        """As of `Exchange`."""
        if self._num_bytes > self._furthest:
            self._furthest = self._num_bytes
            self._exchange.renew()
        return self._exchange.failed(err)


def _length(response: httpx.Response) -> int | None:
    """Bytes of the body, if they are told as they are sent."""
    value = response.headers.get("content-length", "")
    is_coded = response.headers.get("content-encoding", "identity") != "identity"
    return None if is_coded or not value.isdecimal() else int(value)
