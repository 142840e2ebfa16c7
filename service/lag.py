"""How late the event loop is: whether more comes than it can even refuse."""

from __future__ import annotations

import asyncio
import time

_TICK_S = 0.02
_LATE_S = 0.02
_SUSTAINED = 4  # ticks; one long step, such as a large body to parse, makes but one late
_MOST = 8


class Lag:
    """A tick of the event loop that is late again and again.

    Where requests come faster than the loop takes them, each waits for all before it, and a refusal
    is as late as an answer. `is_late` then holds, so that they can be refused before anything is
    spent on them, until the ticks are on time again.
    """

    def __init__(self) -> None:
        self._late = 0

    @property
    def is_late(self) -> bool:
        """Whether the loop is late, and has been for a while."""
        return self._late >= _SUSTAINED

    async def watch(self) -> None:
        """Tick until cancelled."""
        while True:
            due_s = time.monotonic() + _TICK_S
            await asyncio.sleep(_TICK_S)
            if time.monotonic() > due_s + _LATE_S:
                self._late = min(_MOST, self._late + 1)
            else:
                self._late = max(0, self._late - 1)
