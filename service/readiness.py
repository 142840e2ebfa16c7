"""Whether this process should get traffic: judged by work done, not by being alive."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Protocol

from service.jobs import DeadlineError

log = logging.getLogger(__name__)


class Probed(Protocol):
    """A part of the service that can be asked to do a little work."""

    async def probe(self, *, timeout_s: float) -> None:
        """Do it, ahead of all that waits; any exception means that the part does not work."""
        ...


class Readiness:
    """Probes the parts every so often (the model by a forward pass) and remembers how it went."""

    def __init__(self, parts: Sequence[Probed], *, interval_s: float, max_age_s: float) -> None:
        self.draining = False
        self._parts = parts
        self._interval_s = interval_s
        self._max_age_s = max_age_s
        self._last_good_s: float | None = None
        self._failure: str | None = None

    async def watch(self) -> None:
        """Probe after every interval, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.probe()

    async def probe(self) -> None:
        """One probe; its outcome shows in `reasons`."""
        try:
            await asyncio.gather(*(part.probe(timeout_s=self._max_age_s) for part in self._parts))
        except Exception as err:  # any failure means not ready, and the watch goes on
            self._failure = str(err) if isinstance(err, DeadlineError) else type(err).__name__
            log.exception("probe failed")
            return
        self._failure = None
        self._last_good_s = time.monotonic()

    def reasons(self) -> list[str]:
        """Why the process is not ready; empty when it is."""
        reasons = ["shutting down"] if self.draining else []
        if self._failure is not None:
            reasons.append(f"the last probe failed ({self._failure})")
        if self._last_good_s is None:
            return [*reasons, "no probe has finished yet"]
        age_s = time.monotonic() - self._last_good_s
        if age_s > self._max_age_s:
            reasons.append(
                f"the last good probe was {age_s:.1f} s ago; "
                f"at most {self._max_age_s:g} s are allowed"
            )
        return reasons
