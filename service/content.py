"""Originals over HTTP: byte ranges, validators, and only types that a browser cannot execute."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import ApiError

CHUNK_BYTES = 256 * 1024

_RANGE = re.compile(r"^bytes=(?P<first>\d{0,18})-(?P<last>\d{0,18})$")
_TYPES = {  # of our own: what Python knows depends on the machine
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jfif": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class ByteRange:
    """Bytes `first` to `last`, both included, of `size_bytes`."""

    first: int
    last: int
    size_bytes: int

    def __len__(self) -> int:
        return self.last - self.first + 1


def parse_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """The one range a request asks for; None means the whole (RFC 9110, section 14.2).

    Several ranges, other units and malformed headers are ignored, as the RFC allows.

    Raises:
        ApiError: 416 for a range outside the content.
    """
    match = _RANGE.match(header.replace(" ", "")) if header else None
    if match is None or not (match["first"] or match["last"]):
        return None
    if not match["first"]:
        first, last = max(size_bytes - int(match["last"]), 0), size_bytes - 1
    else:
        first = int(match["first"])
        last = min(int(match["last"]) if match["last"] else size_bytes - 1, size_bytes - 1)
        if match["last"] and int(match["last"]) < first:
            return None
    if first > last:
        message = f"range {header!r} is outside the content of {size_bytes:,} bytes"
        headers = {"Content-Range": f"bytes */{size_bytes}"}
        raise ApiError(416, "range_not_satisfiable", message, param="range", headers=headers)
    return ByteRange(first, last, size_bytes)


def etag_matches(header: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` header names `etag` (weak comparison)."""
    if header is None:
        return False
    names = [name.strip().removeprefix("W/") for name in header.split(",")]
    return "*" in names or etag in names


_VIDEO_POLICY = (
    "default-src 'none'; media-src 'self'; frame-ancestors 'none'; sandbox allow-same-origin"
)
"""A browser shows a video in a page of its own, which loads it once more, from this server.

Scripts stay forbidden; without `allow-same-origin` the second request would come from nowhere.
"""


def content_headers(name: str, etag: str) -> dict[str, str]:
    """Headers of an original by its file name; all but pictures, clips and text is a download."""
    known = _TYPES.get(os.path.splitext(name)[1].lower())
    disposition = "inline" if known else "attachment"
    is_video = known is not None and known.startswith("video/")
    policy = {"Content-Security-Policy": _VIDEO_POLICY} if is_video else {}
    return {
        **policy,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=3600",
        "Content-Disposition": f"{disposition}; filename*=UTF-8''{quote(name, safe='')}",
        "Content-Type": known or "application/octet-stream",
        "ETag": etag,
    }


class ContentResponse(StreamingResponse):
    """Streams an open original, or one range of it, and closes it whatever happens."""

    def __init__(
        self, stream: BinaryIO, wanted: ByteRange, *, partial: bool, headers: Mapping[str, str]
    ) -> None:
        self._stream = stream
        length = {"Content-Length": str(len(wanted))}
        if partial:
            where = f"bytes {wanted.first}-{wanted.last}/{wanted.size_bytes}"
            length["Content-Range"] = where
        super().__init__(
            _chunks(stream, wanted), 206 if partial else 200, headers={**headers, **length}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


def _chunks(stream: BinaryIO, wanted: ByteRange) -> Iterator[bytes]:
    stream.seek(wanted.first)
    left = len(wanted)
    while left > 0:
        chunk = stream.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise OSError("the original became shorter while it was sent")
        left -= len(chunk)
        yield chunk
