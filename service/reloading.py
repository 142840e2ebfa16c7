"""The thread that loads galleries while others are searched.

It looks at the root every so often, and at a gallery when it is asked to. Requests for the same
gallery that wait together are answered by one look, and so by one load.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from service.errors import ApiError
from service.galleries import Registry
from service.gallery_status import GalleryStatus
from service.jobs import PoolClosedError

log = logging.getLogger(__name__)

Answer = Future[GalleryStatus | None]

LONG_S = 60.0
"""A look that takes longer is told: a large gallery is loaded, or its disk does not answer."""


@dataclass(frozen=True)
class _Asked:
    """One request to look at a gallery, and when it came."""

    name: str
    asked_s: float = field(default_factory=time.monotonic)
    answer: Answer = field(default_factory=Future)


class Reloader:
    """Keeps a registry at what is published.

    Args:
        registry: the galleries.
        interval_s: pause between looks at the root; 0 looks only when it is asked to.
    """

    def __init__(self, registry: Registry, *, interval_s: float) -> None:
        self._registry = registry
        self._interval_s = interval_s
        self._asked: list[_Asked] = []
        self._begun: list[_Asked] = []
        self._closed = False
        self._looks_since_s: float | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="reload", daemon=True)
        self._thread.start()

    async def reload(self, name: str) -> GalleryStatus | None:
        """Have a gallery looked at, and wait until its current version is served or refused.

        Returns:
            how it does; `None` if there is no such gallery.

        Raises:
            PoolClosedError: if the service shuts down first.
            ApiError: as `Registry.reload`.
        """
        asked = _Asked(name)
        with self._changed:
            if self._closed:
                raise _closed()
            self._asked.append(asked)
            self._changed.notify()
        return await asyncio.wrap_future(asked.answer)

    def warnings(self) -> list[str]:
        """That a look takes long, if it does: nobody can tell from here whether it ends."""
        since_s = self._looks_since_s
        taken_s = 0.0 if since_s is None else time.monotonic() - since_s
        if taken_s <= LONG_S:
            return []
        looks = f"galleries: the look at one of them has taken {taken_s:.0f} s so far"
        return [f"{looks}; a large version is being loaded, or a disk does not answer"]

    def close(self) -> None:
        """Look at nothing more; who waits is told. A load that has begun is not waited for."""
        with self._changed:
            self._closed = True
            unanswered, self._asked, self._begun = [*self._begun, *self._asked], [], []
            self._changed.notify()
        self._finish(unanswered, _closed())

    def join(self, *, until_s: float) -> bool:
        """After `close`, wait for the thread to end; whether it has (`time.monotonic`)."""
        self._thread.join(max(0.0, until_s - time.monotonic()))
        return not self._thread.is_alive()

    def _work(self) -> None:
        next_s = time.monotonic() + self._interval_s
        while not self._closed:
            requests = self._take(next_s)
            for name in dict.fromkeys(asked.name for asked in requests):
                self._answer([asked for asked in requests if asked.name == name])
            if self._interval_s and time.monotonic() >= next_s:
                self._poll()
                next_s = time.monotonic() + self._interval_s
            self._looks_since_s = None

    def _take(self, next_s: float) -> list[_Asked]:
        """Wait until a gallery is asked for, or until it is time to look."""
        with self._changed:
            timeout_s = max(0.0, next_s - time.monotonic()) if self._interval_s else None
            self._changed.wait_for(lambda: self._asked or self._closed, timeout_s)
            self._begun, self._asked = self._asked, []
            return list(self._begun)

    def _answer(self, requests: Sequence[_Asked]) -> None:
        """One look for all requests of one gallery."""
        if self._has_to_stop():
            return
        latest_s = max(asked.asked_s for asked in requests)
        try:
            status = self._registry.reload(requests[0].name, asked_s=latest_s)
        except ApiError as err:
            self._finish(requests, err)
            return
        except Exception as err:  # it must not end the thread
            log.exception("reload failed", extra={"gallery": requests[0].name})
            self._finish(requests, err)
            return
        self._finish(requests, status)

    def _has_to_stop(self) -> bool:
        """Asked before each gallery."""
        self._looks_since_s = time.monotonic()
        return self._closed

    def _poll(self) -> None:
        try:
            self._has_to_stop()
            self._registry.poll(stop=self._has_to_stop)
        except Exception:  # it must not end the thread
            log.exception("looking for new galleries failed")

    def _finish(
        self, requests: Sequence[_Asked], outcome: GalleryStatus | Exception | None
    ) -> None:
        """Tell everybody who still waits, once."""
        with self._changed:
            for asked in requests:
                if asked.answer.done() or not asked.answer.set_running_or_notify_cancel():
                    continue
                if isinstance(outcome, Exception):
                    asked.answer.set_exception(outcome)
                else:
                    asked.answer.set_result(outcome)


def _closed() -> PoolClosedError:
    return PoolClosedError("reload: shutting down")
