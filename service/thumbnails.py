"""Small JPEGs of pictures and frames, and a bounded memory of those already made."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Hashable

from PIL import Image


def make_thumbnail(img: Image.Image, size_px: int) -> bytes:
    """A JPEG whose longer side is at most `size_px`; a small picture is not enlarged."""
    img.thumbnail((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    img.save(out, "JPEG", quality=85, optimize=True)
    return out.getvalue()


class ThumbnailCache:
    """Thumbnails by content hash, size and time; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._jpegs: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> bytes | None:
        """The thumbnail, if it is held."""
        with self._lock:
            if key in self._jpegs:
                self._jpegs.move_to_end(key)
            return self._jpegs.get(key)

    def put(self, key: Hashable, jpeg: bytes) -> None:
        """Hold a thumbnail, and let go of the oldest beyond the limit."""
        with self._lock:
            self._held_bytes += len(jpeg) - len(self._jpegs.pop(key, b""))
            self._jpegs[key] = jpeg
            while self._held_bytes > self._max_bytes:
                _, oldest = self._jpegs.popitem(last=False)
                self._held_bytes -= len(oldest)
