"""How far a build is: a bar for people, lines in the log, or events for machines.

    {"event": "progress", "stage": "embed", "done": 512, "total": 2048, "per_s": 85.3, "eta_s": 18}

The total is known once the source is listed to its end; until then it is null.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

_LOG = logging.getLogger(__name__)


class Progress:
    """Counts entries; says nothing. The others override `show`.

    Attributes:
        stage: what is being done: `embed`, `join`, `index`, `publish` or `done`.
        done: entries dealt with; of `index` vectors added.
        total: of how many; `None` while the source is still being listed.
    """

    def __init__(self, *, interval_s: float = 1.0) -> None:
        """Show at most every `interval_s` seconds."""
        self.stage = "embed"
        self.done = 0
        self.total: int | None = None
        self._continued = 0
        self._interval_s = interval_s
        self._start_s = time.monotonic()
        self._shown_s = self._start_s
        self._lock = threading.Lock()

    def advance(self, entries: int = 1, *, continued: bool = False) -> None:
        """Note entries dealt with; `continued` were finished by an earlier run."""
        with self._lock:
            self.done += entries
            self._continued += entries * continued
            now_s = time.monotonic()
            due = now_s - self._shown_s >= self._interval_s
            if due:
                self._shown_s = now_s
        if due:
            self.show()

    def set_total(self, entries: int) -> None:
        """The source is listed to its end."""
        self.total = entries

    def enter(self, stage: str, *, total: int | None = None) -> None:
        """The next stage begins; with a total, its own entries are counted from 0."""
        self.stage = stage
        if total is not None:
            with self._lock:
                self.done, self.total, self._continued = 0, total, 0
                self._start_s = time.monotonic()
        self.show()

    def show(self) -> None:
        """Tell what there is to tell."""

    def close(self) -> None:
        """Tell no more."""

    @property
    def per_s(self) -> float:
        """Entries a second, those of an earlier run left out."""
        elapsed_s = max(time.monotonic() - self._start_s, 1e-9)
        return (self.done - self._continued) / elapsed_s

    @property
    def eta_s(self) -> float | None:
        """Seconds until all entries are dealt with, if that can be told."""
        if self.total is None or not self.per_s:
            return None
        return max(self.total - self.done, 0) / self.per_s


class CallProgress(Progress):
    """Calls a function with the number of entries dealt with since the last call."""

    def __init__(self, function: Callable[[int], object]) -> None:
        """Take the function."""
        super().__init__()
        self._function = function

    def advance(self, entries: int = 1, *, continued: bool = False) -> None:
        """Tell every step of the embedding."""
        super().advance(entries, continued=continued)
        if self.stage == "embed":
            self._function(entries)


class BarProgress(Progress):
    """A bar on a terminal."""

    def __init__(self, stream: TextIO, unit: str) -> None:
        """Draw on a stream; `unit` names the entries."""
        super().__init__()
        self._bar = tqdm(unit=f" {unit}", file=stream)

    def advance(self, entries: int = 1, *, continued: bool = False) -> None:
        """Move the bar; what an earlier run did does not count towards the rate."""
        super().advance(entries, continued=continued)
        if continued:
            self._bar.initial += entries
            self._bar.n += entries
        else:
            self._bar.update(entries)

    def set_total(self, entries: int) -> None:
        """The bar gets its end."""
        super().set_total(entries)
        self._bar.total = entries
        self._bar.refresh()

    def enter(self, stage: str, *, total: int | None = None) -> None:
        """Name the stage beside the bar."""
        super().enter(stage, total=total)
        if total is not None:
            self._bar.initial = 0
            self._bar.reset(total)
        self._bar.set_description(stage)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class LogProgress(Progress):
    """Lines in the log at INFO."""

    def __init__(self, *, interval_s: float = 10.0) -> None:
        """A line at most every `interval_s` seconds, and one for every stage."""
        super().__init__(interval_s=interval_s)

    def show(self) -> None:
        """Write a line."""
        total = "?" if self.total is None else f"{self.total:,}"
        eta = "" if self.eta_s is None else f", {self.eta_s:.0f} s to go"
        _LOG.info("%s: %s of %s, %.1f/s%s", self.stage, f"{self.done:,}", total, self.per_s, eta)


class JsonProgress(Progress):
    """Events, one JSON object a line."""

    def __init__(self, stream: TextIO, *, interval_s: float = 1.0) -> None:
        """Write to a stream, at most every `interval_s` seconds and at every stage."""
        super().__init__(interval_s=interval_s)
        self._stream = stream

    def show(self) -> None:
        """Write an event."""
        event = {
            "event": "progress",
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "per_s": round(self.per_s, 2),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
        }
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


def as_progress(progress: Callable[[int], object] | Progress | None) -> Progress:
    """A function that takes a number of entries is a progress too."""
    if isinstance(progress, Progress):
        return progress
    return Progress() if progress is None else CallProgress(progress)
