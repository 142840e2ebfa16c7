"""How fast a pool of threads works, by what it did last, and so how long what waits will take."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict

_KEPT = 0.7  # of what was known, when so much is learned:
_MUCH = 32  # units; a few single jobs, which can take as long as a batch, teach little
_SLOWER = 10.0  # at most, by one batch: a process that was stopped for a while is not slow


class Pace:
    """Seconds per unit of work of each type of job; the work that waits and that is being done.

    A type that was never done is expected to take no time. Call it under the pool's lock.
    """

    def __init__(self) -> None:
        self._took_s: defaultdict[type, float] = defaultdict(float)
        self._units: defaultdict[type, float] = defaultdict(float)
        self._warm: set[type] = set()
        self._waiting: Counter[type] = Counter()
        self._ends_s: dict[int, float] = {}

    @property
    def num_busy(self) -> int:
        """Threads that have a batch."""
        return len(self._ends_s)

    def expected_s(self, job: type, units: int) -> float:
        """How long one thread takes for so much of a type."""
        return units * self._took_s[job] / self._units[job] if self._units[job] else 0.0

    def left_s(self) -> float:
        """How long one thread would take for all that waits and for the rest of what is begun."""
        now_s = time.monotonic()
        begun_s = sum(max(0.0, end_s - now_s) for end_s in self._ends_s.values())
        return begun_s + sum(self.expected_s(*waiting) for waiting in self._waiting.items())

    def wait(self, job: type, units: int) -> None:
        """So much more waits; less, if it is negative."""
        self._waiting[job] += units

    def begin(self, job: type, units: int) -> None:
        """This thread begins a batch, or goes on with what is left of one."""
        self._ends_s[threading.get_ident()] = time.monotonic() + self.expected_s(job, units)

    def end(self) -> None:
        """This thread is free again, if it was not yet."""
        self._ends_s.pop(threading.get_ident(), None)

    def learn(self, job: type, units: int, took_s: float) -> None:
        """A thread took so long for so much of a type; the first time it warmed up."""
        if not units:
            return
        if job not in self._warm:
            self._warm.add(job)
            return
        if expected_s := self.expected_s(job, units):
            took_s = min(took_s, _SLOWER * expected_s)
        kept = _KEPT ** min(1.0, units / _MUCH)
        self._took_s[job] = kept * self._took_s[job] + took_s
        self._units[job] = kept * self._units[job] + units
