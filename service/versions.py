"""The versions that are open: those that are served, and old ones until their last query.

Nobody closes a version. Requests, jobs in threads and the registry hold it, and with the last of
them go its mappings, its descriptors and its memory on the GPU: no query can lose it, however long
it takes.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from dataclasses import dataclass

from index_builder.gallery import Gallery

COLLECT_AFTER_S = 60.0
"""Age from which a version that is not served any more is looked for in reference cycles."""


@dataclass
class _Version:
    gallery: weakref.ref[Gallery]
    name: str
    memory_bytes: int
    retired_s: float | None = None
    collected: bool = False


class OpenVersions:
    """Counts what is open, without keeping it open; safe to use from several threads."""

    def __init__(self) -> None:
        self._versions: list[_Version] = []
        self._lock = threading.Lock()

    def add(self, name: str, gallery: Gallery, memory_bytes: int) -> None:
        """A version was opened."""
        with self._lock:
            self._versions.append(_Version(weakref.ref(gallery), name, memory_bytes))

    def retire(self, gallery: Gallery) -> None:
        """A version is not given to new requests any more."""
        for version in self._open():
            if version.gallery() is gallery:
                version.retired_s = time.monotonic()

    def held_bytes(self) -> int:
        """Main memory of all that are open, about."""
        return sum(version.memory_bytes for version in self._open())

    def count(self, name: str) -> int:
        """How many versions of a gallery are open."""
        return sum(version.name == name for version in self._open())

    def collect(self) -> None:
        """Free the versions that only a reference cycle keeps, as a failed request can leave one.

        Python would come to it by itself, but not soon. Each is looked for once: a slow download
        may hold it as well.
        """
        before_s = time.monotonic() - COLLECT_AFTER_S
        due = [
            version
            for version in self._open()
            if version.retired_s is not None
            and version.retired_s <= before_s
            and not version.collected
        ]
        for version in due:
            version.collected = True
        if due:
            gc.collect()

    def _open(self) -> list[_Version]:
        with self._lock:
            self._versions = [v for v in self._versions if v.gallery() is not None]
            return list(self._versions)
