"""Noticing a run that has diverged, though its figures are finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from training.config import EngineConfig
from training.engine.step_report import StepReport
from training.errors import TrainingError


class LossWatch:
    """Judges steps once the queues are full; see `diverges_after` of `EngineConfig`.

    The median is that of the last good losses, so that a loss that stays high does not become the
    measure; and of no fewer than `diverges_after`, so that no single one is.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Watch as configured."""
        self._config = config
        self._good: list[float] = []
        self._num_high = 0
        self._num_flat = 0

    def check(self, report: StepReport, *, step: int) -> None:
        """Take a step's figures.

        Raises:
            TrainingError: if it is the last of `diverges_after` bad ones in a row.
        """
        if self._config.diverges_after and report.is_full:
            self._check_features(report, step)
            if report.kept:  # else there is no loss: it is 0
                self._check_loss(report.losses["total"], step)

    def _check_features(self, report: StepReport, step: int) -> None:
        config = self._config
        spreads = {"image": report.image_spread, "text": report.text_spread}
        side, spread = min(spreads.items(), key=lambda item: item[1])
        self._num_flat = self._num_flat + 1 if spread < config.collapses_below else 0
        if self._num_flat >= config.diverges_after:
            raise TrainingError(
                f"the {side} features have collapsed by step {step}: 1 - |mean| of the unit "
                f"vectors in the {side} queue is {spread:.1e}, and below "
                f"{config.collapses_below:g} for {self._num_flat} steps, so nearly all are one and "
                "the same; lower the lr, or set engine.collapses_below"
            )

    def _check_loss(self, loss: float, step: int) -> None:
        config = self._config
        usual = median(self._good) if len(self._good) >= config.diverges_after else math.inf
        is_high = loss > config.diverges_factor * usual
        if not is_high:
            self._good = [*self._good, loss][-config.diverges_after :]
        self._num_high = self._num_high + 1 if is_high else 0
        if self._num_high >= config.diverges_after:
            raise TrainingError(
                f"the loss has diverged by step {step}: {loss:.4g}, for {self._num_high} steps "
                f"above {config.diverges_factor:g} times its median of {usual:.4g}; lower the lr, "
                "or set engine.diverges_factor"
            )

    def state(self) -> dict[str, Any]:
        """To go on exactly."""
        return {"good": self._good, "num_high": self._num_high, "num_flat": self._num_flat}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; an empty one starts anew."""
        self._good = list(state.get("good", []))
        self._num_high = int(state.get("num_high", 0))
        self._num_flat = int(state.get("num_flat", 0))
