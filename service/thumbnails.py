"""Small JPEGs of pictures, and a bounded memory of those already made."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

from PIL import Image

from cots_model.images import decode_image

Key = tuple[str, int]


def make_thumbnail(data: bytes, size_px: int, *, max_pixels: int) -> bytes:
    """A JPEG whose longer side is at most `size_px`; a small picture is not enlarged.

    Raises:
        ImageError: if `data` is not a picture that we decode.
    """
    img = decode_image(data, max_pixels=max_pixels)
    img.thumbnail((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    img.save(out, "JPEG", quality=85, optimize=True)
    return out.getvalue()


class ThumbnailCache:
    """Thumbnails by content hash and size; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._jpegs: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> bytes | None:
        """The thumbnail, if it is held."""
        with self._lock:
            if key in self._jpegs:
                self._jpegs.move_to_end(key)
            return self._jpegs.get(key)

    def put(self, key: Key, jpeg: bytes) -> None:
        """Hold a thumbnail, and let go of the oldest beyond the limit."""
        with self._lock:
            self._held_bytes += len(jpeg) - len(self._jpegs.pop(key, b""))
            self._jpegs[key] = jpeg
            while self._held_bytes > self._max_bytes:
                _, oldest = self._jpegs.popitem(last=False)
                self._held_bytes -= len(oldest)
