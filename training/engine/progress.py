"""How far a run is, and how that is shown: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_LINE_EVERY_S = 60.0


@dataclass
class Progress:
    """Where a run is, besides the stepper's state.

    Attributes:
        epoch: that is being trained, from 0.
        place: in the epoch's stream; `None` at its start.
        wall_s: seconds of training so far, with what loading the data took.
        best_r1: best mean of the two R@1 so far; below 0 before the first scoring.
    """

    epoch: int = 0
    place: dict[str, Any] | None = None
    wall_s: float = 0.0
    best_r1: float = -1.0


class StepsShown(contextlib.ExitStack):
    """Counts the steps of one epoch, and shows them."""

    def __init__(
        self, log: logging.Logger, name: str, *, total: int, initial: int = 0, enabled: bool = True
    ) -> None:
        """Begin to show, until the end of a with statement.

        Args:
            log: takes a line a minute where there is no terminal.
            name: of what is counted.
            total: steps.
            initial: those that were done before.
            enabled: whether anything is shown; of several processes one does.
        """
        super().__init__()
        self._log, self._name, self._enabled = log, name, enabled
        self._total, self._first, self._count = total, initial, initial
        self._started = self._shown = time.monotonic()
        terminal = enabled and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        if terminal:
            self.enter_context(logging_redirect_tqdm())  # lines above the bar, not in it
            self._bar = self.enter_context(
                tqdm(total=total, initial=initial, desc=name, unit="step")
            )

    def step(self, figure: str) -> None:
        """Count a step, with a figure to be seen beside it."""
        self._count += 1
        if self._bar is not None:
            self._bar.set_postfix_str(figure, refresh=False)
            self._bar.update()
        elif self._enabled and time.monotonic() - self._shown > _LINE_EVERY_S:
            self._shown = time.monotonic()
            per_step_s = (self._shown - self._started) / (self._count - self._first)
            left = timedelta(seconds=round(per_step_s * (self._total - self._count)))
            self._log.info(
                "%s: step %d of %d, %s, %s left", self._name, self._count, self._total, figure, left
            )
