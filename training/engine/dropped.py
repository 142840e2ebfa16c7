"""Pairs that the momentum filter dropped: kept as they come, shown on a page (supplement, fig. 2).

Every process appends its own to `filtered/rank-000.jsonl` in the run's folder, and forgets on
resuming what the run is about to do again; the main process makes the page from all of them.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from cots_model.errors import ConfigError, CotsError, InputError
from training.batches import Batch
from training.config import TrainConfig
from training.dropped_page import DroppedPair, write_page
from training.engine.step_report import StepReport
from training.engine.stopping import StoppedError
from training.engine.world import World

log = logging.getLogger(__name__)

FILTERED = "filtered"
_BEGAN = "began.txt"


@dataclass(frozen=True)
class FilterReport:
    """A page that is asked for.

    Attributes:
        path: of the HTML file; its folder is made.
        limit: pairs shown, the newest.
    """

    path: Path
    limit: int = 200

    def check(self, config: TrainConfig) -> None:
        """Say before the training what would make the page fail after it.

        Raises:
            ConfigError: if the filter is off.
            InputError: if the file cannot be written.
        """
        if not config.objective.filter.enabled:
            raise ConfigError(
                f"the filter is off in this configuration, so there is nothing for {self.path}; "
                "set objective.filter.enabled=true, or leave out --report-filtered"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab"):
                pass
        except OSError as err:
            raise InputError(
                f"{self.path} cannot be written ({err}); give --report-filtered another file"
            ) from err


class DroppedLog:
    """The dropped pairs of one run; without a report it does nothing."""

    def __init__(
        self, config: TrainConfig, report: FilterReport | None, world: World, *, step: int
    ) -> None:
        """Go on at `step`: pairs dropped from that step on are forgotten."""
        self._config, self._report, self._world = config, report, world
        self._folder = config.output / FILTERED
        self._file: TextIO | None = None
        self._step_pairs = config.batch_size * config.accumulate * world.size
        self._step = step
        if report is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._begin(step)
        own = self._folder / f"rank-{world.rank:03d}.jsonl"
        others = self._files()[world.size :] if world.is_main else []  # of a run with more ranks
        for path in {own, *others}:
            _forget(path, step)
        self._file = own.open("a", encoding="ascii")

    def record(self, step: int, batches: Sequence[Batch], report: StepReport) -> None:
        """Write this process's dropped pairs of a step, each with the caption that was drawn."""
        if self._file is None:
            return
        self._step = step + 1
        for place, row, similarity in report.dropped:
            draw = batches[place].draws[row]
            pair = DroppedPair.of(
                draw,
                step=step,
                similarity=similarity,
                mean=report.mean,
                std=report.std,
                threshold=report.threshold,
            )
            self._file.write(json.dumps(asdict(pair)) + "\n")
        self._file.flush()  # before the step's state is saved

    def end_epoch(self) -> None:
        """Write the page; a full disk is logged, and ends no training."""
        try:
            self.write_page()
        except CotsError as err:
            log.warning("%s", err)

    def write_page(self) -> None:
        """Write the page of what was dropped so far; the main process alone does.

        Raises:
            CotsError: if it cannot be written.
        """
        if self._report is None or not self._world.is_main:
            return
        config, report = self._config, self._report
        try:
            write_page(
                report.path,
                lambda: _read_all(self._files()),
                name=config.name,
                num_sigmas=config.objective.filter.num_sigmas,
                num_seen=self._step * self._step_pairs,
                num_watched=(self._step - self._began(default=0)) * self._step_pairs,
                queue_length=config.objective.instance.queue_length,
                limit=report.limit,
            )
        except OSError as err:
            raise CotsError(
                f"{report.path} could not be written ({err}); the pairs are in {self._folder}"
            ) from err

    def _begin(self, step: int) -> None:
        """Note from which step on dropped pairs are kept, unless that was noted before."""
        if self._world.is_main and self._began(default=step) >= step:
            partial = self._folder / "began.partial"
            partial.write_text(str(step))
            partial.replace(self._folder / _BEGAN)

    def _began(self, *, default: int) -> int:
        try:
            return int((self._folder / _BEGAN).read_text())
        except (OSError, ValueError):
            return default

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("rank-*.jsonl"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; a run that ended as it should, or was stopped, leaves its page."""
        if self._file is not None:
            self._file.close()
        if error is None or isinstance(error, StoppedError):
            self.write_page()


def _read_all(paths: Sequence[Path]) -> Iterator[DroppedPair]:
    """The pairs of all processes in the order of their steps."""
    return heapq.merge(*(_read(path) for path in paths), key=lambda pair: pair.step)


def _read(path: Path) -> Iterator[DroppedPair]:
    with path.open(encoding="ascii") as file:
        for line in file:
            try:
                yield DroppedPair(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the last line of a killed run


def _forget(path: Path, step: int) -> None:
    """Keep the pairs before `step`."""
    if not path.is_file():
        return
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(asdict(pair)) + "\n" for pair in _read(path) if pair.step < step)
    partial.replace(path)
