"""Noticing a run that has diverged, though its figures are finite."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from training.config import EngineConfig
from training.engine.step_report import StepReport
from training.errors import TrainingError


class LossWatch:
    """Judges steps once the queues are full; see `diverges_after` of `EngineConfig`.

    The median is that of the last good losses, so that a loss that stays high does not become the
    measure.
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
        config, loss = self._config, report.losses["total"]
        if not config.diverges_after or not report.is_full:
            return
        usual = median(self._good) if self._good else loss
        is_high = loss > config.diverges_factor * usual
        if not is_high:
            self._good = [*self._good, loss][-config.diverges_after :]
        self._num_high = self._num_high + 1 if is_high else 0
        self._num_flat = self._num_flat + 1 if report.std < config.collapses_below else 0
        if self._num_flat >= config.diverges_after:
            raise TrainingError(
                f"the features have collapsed by step {step}: the similarities of the queue differ "
                f"by no more than {report.std:.1e} for {self._num_flat} steps; lower the lr, or "
                "set engine.collapses_below"
            )
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
