"""Whether this process should get traffic: judged by work done, not by being alive."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Protocol

from service.jobs import DeadlineError

log = logging.getLogger(__name__)


class Probed(Protocol):
    """A part of the service that can be asked to do a little work."""

    @property
    def longest_s(self) -> float:
        """How long one of its threads has been at a job."""
        ...

    async def probe(self, *, timeout_s: float) -> None:
        """Do it, ahead of all that waits; any exception means that the part does not work."""
        ...


class Readiness:
    """Probes the parts every so often (the model by a forward pass) and remembers how it went.

    A part also answers while one of several threads is stuck. Of what computes, that makes the
    process unready: it will not get better. Of what reads files, it is a warning: a share that does
    not answer takes no search with it.
    """

    def __init__(
        self,
        computing: Mapping[str, Probed],
        reading: Mapping[str, Probed],
        *,
        interval_s: float,
        max_age_s: float,
        max_job_s: float,
    ) -> None:
        """Nothing is probed yet.

        Args:
            computing: parts by name, whose jobs end by themselves soon after the deadline.
            reading: parts whose jobs may wait for files.
            interval_s: between two probes.
            max_age_s: of the last good probe.
            max_job_s: a thread that has been at one job for longer is stuck.
        """
        self.draining = False
        self._computing = computing
        self._reading = reading
        self._interval_s = interval_s
        self._max_age_s = max_age_s
        self._max_job_s = max_job_s
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
            parts = (*self._computing.values(), *self._reading.values())
            await asyncio.gather(*(part.probe(timeout_s=self._max_age_s) for part in parts))
        except Exception as err:  # any failure means not ready, and the watch goes on
            self._failure = str(err) if isinstance(err, DeadlineError) else type(err).__name__
            log.exception("probe failed")
            return
        self._failure = None
        self._last_good_s = time.monotonic()

    def reasons(self) -> list[str]:
        """Why the process is not ready; empty when it is."""
        reasons = ["shutting down"] if self.draining else []
        reasons += self._stuck(self._computing)
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

    def warnings(self) -> list[str]:
        """What is wrong with the process, which is ready all the same."""
        return self._stuck(self._reading)

    def _stuck(self, parts: Mapping[str, Probed]) -> list[str]:
        return [
            f"{name}: a thread has been at one job for {part.longest_s:.0f} s"
            for name, part in parts.items()
            if part.longest_s > self._max_job_s
        ]
