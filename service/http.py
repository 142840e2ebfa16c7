"""HTTP/1.1 as uvicorn and httptools read it, with a bound on what is not a body.

httptools is written in C and takes a fraction of the time of h11, uvicorn's other reader. But it
keeps heads of any length: a client that never ends one would fill the memory.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line with all headers, and of what comes between two parts of a body."""


class BoundedHttp(HttpToolsProtocol):
    """Answers 400 where a head, a trailer or a chunk's extension is too long, and hangs up."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_bytes = 0
        self._unread_bytes = 0  # that came and are part of nothing that is complete

    def data_received(self, data: bytes) -> None:
        """Take what has come; pieces are at most 256 KiB."""
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.logger.warning("a request without end: %d bytes of a head", self._unread_bytes)
            self.send_400_response("Invalid HTTP request received: its head is too long.")

    def on_message_begin(self) -> None:
        """Called by the parser, like the others, when a request begins."""
        self._head_bytes = self._unread_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer after the body."""
        self._count(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._unread_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._unread_bytes = 0
        super().on_body(body)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        self._unread_bytes = 0
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError(f"a head of over {MAX_HEAD_BYTES} bytes")  # the parser says invalid
