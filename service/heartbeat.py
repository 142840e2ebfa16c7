"""How the parent of several workers knows that each still answers.

In a worker a thread asks the event loop, again and again, to run something, and sends a beat when
it has. Threads that compute for long, a full queue or a model that hangs do not stop that; an event
loop that runs no more does, and so does a process that is stopped or cannot run Python any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Self

from fastapi import FastAPI


@dataclass(frozen=True)
class Beat:
    """What a worker tells its parent while its event loop runs."""


class Heartbeat:
    """Beats while an event loop runs.

    Args:
        loop: that is to answer.
        send: called for each beat, in a thread; after an `OSError` there are no more.
        interval_s: between an answer and the next question.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, send: Callable[[Beat], object], *, interval_s: float
    ) -> None:
        self._loop = loop
        self._send = send
        self._interval_s = interval_s
        self._answered = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Beat no more; it waits for nothing."""
        self._ended.set()

    def _beat(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # the parent is gone, the loop is closed
            while not self._ended.is_set():
                self._answered.clear()
                self._loop.call_soon_threadsafe(self._answered.set)
                while not self._answered.wait(self._interval_s):
                    if self._ended.is_set():
                        return
                if not self._ended.is_set():
                    self._send(Beat())
                self._ended.wait(self._interval_s)


def with_heartbeat(app: FastAPI, send: Callable[[Beat], object], *, interval_s: float) -> None:
    """Have an application beat from before its start to the beginning of its end.

    The first beat is sent before the application can say that it is ready: no worker that ever was
    can fall silent unnoticed.
    """
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(started: Any) -> AsyncIterator[Any]:
        with contextlib.suppress(OSError):  # the parent is gone
            send(Beat())
        with contextlib.ExitStack() as heart:
            heart.enter_context(Heartbeat(asyncio.get_running_loop(), send, interval_s=interval_s))
            async with inner(started) as state:
                try:
                    yield state
                finally:
                    heart.close()

    app.router.lifespan_context = lifespan


class Pulse:
    """How long a worker has been silent, as its parent sees it.

    Nothing is expected before the first beat: loading takes as long as it takes. Time in which the
    parent itself did not look (the machine slept, all were stopped) counts once at most.

    Args:
        interval_s: in which the parent looks at least once.
        limit_s: of silence.
        now_s: on any clock that `is_silent` is asked by.
    """

    def __init__(self, *, interval_s: float, limit_s: float, now_s: float) -> None:
        self._interval_s = interval_s
        self._limit_s = limit_s
        self._looked_s = now_s
        self._silent_s: float | None = None

    def beat(self) -> None:
        """The worker has answered."""
        self._silent_s = 0.0

    def is_silent(self, now_s: float) -> bool:
        """Whether the worker, that once answered, has not for too long."""
        passed_s = min(now_s - self._looked_s, self._interval_s)
        self._looked_s = now_s
        if self._silent_s is None:
            return False
        self._silent_s += passed_s
        return self._silent_s > self._limit_s
