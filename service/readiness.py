"""Whether this process should get traffic: judged by forward passes, not by being alive."""

from __future__ import annotations

import asyncio
import logging
import time

from service.encoding import Embedder

log = logging.getLogger(__name__)


class Readiness:
    """Runs a probe forward pass every so often and remembers how it went."""

    def __init__(self, embedder: Embedder, *, interval_s: float, max_age_s: float) -> None:
        self.draining = False
        self._embedder = embedder
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
            await self._embedder.probe(timeout_s=self._max_age_s)
        except Exception as err:  # any failure of the model means not ready, and the watch goes on
            self._failure = type(err).__name__
            log.exception("probe forward pass failed")
            return
        self._failure = None
        self._last_good_s = time.monotonic()

    def reasons(self) -> list[str]:
        """Why the process is not ready; empty when it is."""
        reasons = ["shutting down"] if self.draining else []
        if self._failure is not None:
            reasons.append(f"the last probe forward pass failed ({self._failure})")
        if self._last_good_s is None:
            return [*reasons, "no probe forward pass has finished yet"]
        age_s = time.monotonic() - self._last_good_s
        if age_s > self._max_age_s:
            reasons.append(
                f"the last good probe forward pass was {age_s:.1f} s ago; "
                f"at most {self._max_age_s:g} s are allowed"
            )
        return reasons
