"""An iterator run in a thread of its own, a bounded number of items ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_PUT_S = 0.1
_STOP_S = 10.0


class Background(Generic[T]):
    """Iterate over what another thread takes from `items`; its errors are raised here."""

    def __init__(self, items: Iterator[T], *, size: int) -> None:
        """Start taking items, at most `size` ahead."""
        self._queue: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(size)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            kind, value = self._queue.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]

    def stop(self) -> None:
        """Take no more items, and wait until the thread has ended, unless `items` hangs."""
        self._stopping.set()
        self._thread.join(_STOP_S)

    def _run(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as err:  # noqa: BLE001 - whatever it is, it belongs to the other thread
            self._put("error", err)

    def _put(self, kind: str, value: T | BaseException | None) -> bool:
        while not self._stopping.is_set():
            try:
                self._queue.put((kind, value), timeout=_PUT_S)
                return True
            except queue.Full:
                continue
        return False
