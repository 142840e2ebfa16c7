"""Downloads that go on where a broken connection left them, into a file that appears when whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import httpx

from cots_client import calls
from cots_client.errors import AnswerError
from cots_client.exchange import Done, Exchange, RetryPolicy, Wait
from cots_client.wire import check_original, content_range


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes its name at the end; after an error there is none.

    Args:
        path: of it; links are followed, and a file that is there gives its mode.

    Raises:
        OSError: if it cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(errno.EISDIR, "no place for a file; give the name of one", os.fspath(path))
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            if target.exists():
                part.chmod(stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
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
        self._pause_s = policy.timeout_s
        self._file = file
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0
        self._furthest = 0
        self._size_bytes: int | None = None
        self._etag: str | None = None

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """For the whole, or for what is missing of the same original."""
        headers = {}
        if self._num_bytes and self._etag:
            headers = {"Range": f"bytes={self._num_bytes}-", "If-Range": self._etag}
        return self._exchange.request(http, headers, pause_s=self._pause_s)

    def begins(self, response: httpx.Response) -> bool:
        """Whether the body of an answer is the original; else read it and tell `answered`.

        Raises:
            AnswerError: if it can be none.
            httpx.RemoteProtocolError: if it goes on with another; the next request is for a whole.
        """
        if response.status_code not in self._exchange.call.accepts:
            return False
        check_original(response)
        _check_coding(response)
        first, size_bytes = content_range(response) or (0, _length(response))
        if first not in (0, self._num_bytes):
            message = f"the server sends bytes from {first} on; {self._num_bytes} was asked for"
            raise AnswerError(message)
        etag = response.headers.get("etag", "")
        goes_on = etag == self._etag and self._size_bytes in (None, size_bytes)
        if not (first and goes_on):
            self._begin_anew()
        if first and not goes_on:
            message = "the answer goes on with another original"
            raise httpx.RemoteProtocolError(message, request=response.request)
        self._size_bytes = size_bytes
        self._etag = None if etag.startswith("W/") else etag  # a weak one does not tell bytes
        return True

    def _begin_anew(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._num_bytes, self._sha256 = 0, hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Some more of the body."""
        self._file.write(chunk)
        self._sha256.update(chunk)
        self._num_bytes += len(chunk)

    def ended(self, response: httpx.Response) -> Done[None]:
        """After the last of the body.

        Raises:
            httpx.RemoteProtocolError: if it is not the last of the original.
            AnswerError: if it is not the original that its ETag names.
        """
        if self._size_bytes not in (None, self._num_bytes):
            message = f"the body ended after {self._num_bytes} of {self._size_bytes} bytes"
            raise httpx.RemoteProtocolError(message, request=response.request)
        named = re.fullmatch(r'"([0-9a-f]{64})"', self._etag or "")  # the service's, by SHA-256
        if named and named[1] != self._sha256.hexdigest():
            message = f"the {self._num_bytes} bytes that came are not the original of their ETag"
            raise AnswerError(f"{message}; try again, without a proxy in between")
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


def _check_coding(response: httpx.Response) -> None:
    coding = response.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        message = f"the original comes in the coding {coding!r}, which was not asked for"
        raise AnswerError(f"{message}; have proxies in between leave it as it is")


def _length(response: httpx.Response) -> int | None:
    """Bytes of the body, if they are told."""
    value = response.headers.get("content-length", "")
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None
