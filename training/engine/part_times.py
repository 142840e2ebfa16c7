"""Where the time of a step goes, for `cots bench train`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PartTimes:
    """Adds up the seconds of named parts; does nothing until it is switched on.

        with times("keys"):
            ...

    Waiting for the device before and after each part costs speed, so runs leave it off.

    Attributes:
        enabled: whether to measure.
        seconds: so far, by part.
    """

    def __init__(self, device: torch.device) -> None:
        """Measure what runs on `device`."""
        self._device = device
        self.enabled = False
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside to `part`."""
        if not self.enabled:
            yield
            return
        start = self._now()
        yield
        self.seconds[part] += self._now() - start

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
