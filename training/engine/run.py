"""One run: steps, saved states, log, checkpoints; stopped at any step it goes on exactly."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from cots_model.errors import CotsError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from training.batches import Batch, PairBatches
from training.config import TrainConfig
from training.engine.checkpoints import Done, figures_of, keep_if_best, write_checkpoint
from training.engine.divergence import LossWatch
from training.engine.dropped import DroppedLog, FilterReport
from training.engine.failed import keep_failed
from training.engine.progress import Progress, StepsShown
from training.engine.run_log import RunLog
from training.engine.same_run import (
    check_same_data,
    sums_of,
    warn_of_other_sums,
    write_run,
)
from training.engine.snapshot import capture, full_weights, restore
from training.engine.speed import Speed
from training.engine.states import STATES, StateFolder
from training.engine.step_report import StepReport
from training.engine.stepper import Stepper
from training.engine.stopping import StoppedError, StopRequest
from training.errors import TrainingError
from training.example import Example
from training.metrics import RetrievalMetrics

log = logging.getLogger(__name__)


class Run:
    """Trains, and keeps what is needed to go on."""

    def __init__(
        self,
        config: TrainConfig,
        stepper: Stepper,
        batches: PairBatches,
        preprocess: Preprocess,
        evaluated: list[Example],
        stop: StopRequest,
        *,
        frozen: str = "",
        report: FilterReport | None = None,
        finish: Callable[[CotsModel], None] | None = None,
    ) -> None:
        """Take the parts, and go back to the last saved state of this run if there is one.

        Args:
            config: of the run.
            stepper: does the steps.
            batches: gives the pairs.
            preprocess: written into the checkpoints.
            evaluated: scored between epochs.
            stop: asked after every step.
            frozen: fingerprint of the networks that are not trained; no state goes on with others.
            report: keeps and shows the pairs that the filter drops.
            finish: changes the model of the last checkpoint before it is written.

        Raises:
            ConfigError: if the last state is of other data.
            TrainingError: if all its states are damaged.
        """
        self.config, self.stepper, self.batches = config, stepper, batches
        self.preprocess, self.evaluated, self.stop = preprocess, evaluated, stop
        self.finish, self.frozen = finish, frozen
        self.world = stepper.world
        self._sums = sums_of(self.world.device) | {
            "engine.compile": config.engine.compile,
            "engine.parallel": config.engine.parallel if self.world.size > 1 else "",
            "engine.channels_last": config.engine.channels_last,
        }
        self.states = StateFolder(config.output / STATES, keep=config.engine.keep_states)
        self.progress = Progress()
        self.watch = LossWatch(config.engine)
        self.metrics: RetrievalMetrics | None = None
        self.fingerprint = ""
        self.speed = Speed(config, stepper) if self.world.is_main else None
        self._go_on()
        self.dropped = DroppedLog(config, report, self.world, step=stepper.step)

    def _go_on(self) -> None:
        """Take the last saved state, if there is one."""
        with self.world.together():
            saved = self.states.load_latest()
            if saved is not None:
                check_same_data(saved[1]["data"], self._data())
        steps = self.world.gather_objects(None if saved is None else saved[0])
        if any(step != steps[0] for step in steps):
            raise TrainingError(
                f"the processes find different saved states in {self.states.folder} (at steps "
                f"{', '.join(map(str, steps))}); output must be one folder that all of them see"
            )
        self._went_on = saved is not None
        if saved is None:
            return
        step, state = saved
        if self.world.is_main:
            warn_of_other_sums(state.get("sums", {}), self._sums)
        restore(self.stepper, state["stepper"])
        self.progress = Progress(**state["progress"])
        self.watch.restore(state.get("watch", {}))
        log.info("going on at step %d of %s", step, self.config.output)

    def train(self) -> None:
        """Run the epochs that are left.

        Raises:
            StoppedError: if the process was asked to end; the state is saved.
            TrainingError: if a figure is not finite, or the loss has diverged or the features have
                collapsed (see `diverges_after` of `EngineConfig`). The state is saved in `failed`
                beside the others: before the step of that figure, or after the last bad one.
            CotsError: of the data, the evaluation or another process.
        """
        if self.world.is_main:
            write_run(self.config.output, self.config)
        with self.dropped, self._open_log() as file:
            if self.progress.epoch >= self.config.epochs:
                if self._went_on:
                    log.info(
                        "%s was finished before; its checkpoint is made anew", self.config.output
                    )
                self._write_again()
            while self.progress.epoch < self.config.epochs:
                self._epoch(file)
                scored = self._is_scored_after_epoch()
                self.progress.epoch += 1
                self.progress.place = None
                self._finish_epoch(file, scored=scored)

    def _open_log(self) -> RunLog:
        step, epoch = self.stepper.step, self.progress.epoch
        return RunLog(self.config.output, step=step, epoch=epoch, enabled=self.world.is_main)

    def _epoch(self, file: RunLog) -> None:
        """Train the rest of one epoch."""
        shown = StepsShown(
            log,
            f"epoch {self.progress.epoch}",
            total=self.stepper.steps_per_epoch,
            initial=self._steps_of_epoch(),
            enabled=self.world.is_main,
        )
        losses, epoch_s = list[float](), -self.progress.wall_s
        counted = time.perf_counter()
        with shown:
            for group in self._groups():
                started = time.perf_counter()
                report = self._step(group)
                ended = time.perf_counter()
                self.progress.wall_s += ended - counted  # with what the data and saving took
                self._record(file, report, group, started - counted, ended - started)
                counted = ended
                self.dropped.record(self.stepper.step - 1, group, report)
                losses.append(report.losses["total"])
                shown.step(f"loss {losses[-1]:.3f}")
                self._save_if_due()
        if losses:
            epoch_s += self.progress.wall_s
            mean = sum(losses) / len(losses)
            log.info("epoch %d: loss %.4f, %.0f s", self.progress.epoch, mean, epoch_s)
            if self._is_scored_after_epoch():  # which may fail
                self._save()

    def _steps_of_epoch(self) -> int:
        """Done in this epoch; a batch of which no picture could be read counts."""
        place = self.progress.place
        return 0 if place is None else int(place["step"]) // self.config.accumulate

    def _groups(self) -> Iterator[list[Batch]]:
        """The batches of each optimiser step; a short last group of an epoch is dropped."""
        group: list[Batch] = []
        batches = self.batches.epoch(self.progress.epoch, self.progress.place)
        while True:
            try:
                with self.world.together():
                    batch = next(batches, None)
            except CotsError:
                self._stop_if_asked()  # what ended a loading process may be what asks for it
                raise
            if batch is None:
                return
            group.append(batch)
            if len(group) == self.config.accumulate:
                self.progress.place = self.batches.state
                yield group
                group = []

    def _step(self, group: list[Batch]) -> StepReport:
        try:
            report = self.stepper.run(group)
            with self.world.together():
                self.watch.check(report, step=self.stepper.step - 1)
        except TrainingError as err:
            output, step, state = self.config.output, self.stepper.step, self._state()
            raise keep_failed(err, output, step, state, group, self.world) from err
        return report

    def _record(
        self, file: RunLog, report: StepReport, group: list[Batch], wait_s: float, step_s: float
    ) -> None:
        step = self.stepper.step - 1
        if self.speed is not None and step % self.config.engine.log_every == 0:
            speed = self.speed.figures(group, step_s=step_s, wait_s=wait_s)
            file.record(step, {**report.figures(), **speed})

    def _save_if_due(self) -> None:
        self._stop_if_asked()
        if self.stepper.step % self.config.engine.save_every == 0:
            self._save()

    def _stop_if_asked(self, *, is_saved: bool = False) -> None:
        if not self.world.any(self.stop.signal is not None):
            return
        step = self.stepper.step
        if step and not is_saved:  # before the first there is nothing that would be lost
            self._save()
        when = f"after step {step - 1}" if step else "before the first step"
        raise StoppedError(f"stopped {when}; run the same command to go on")

    def _is_scored_after_epoch(self) -> bool:
        """Whether the epoch that is being trained is followed by scoring."""
        number = self.progress.epoch + 1
        due = number % self.config.evaluate_every == 0 or number == self.config.epochs
        return due and bool(self.evaluated)

    def _save(self) -> None:
        state = self._state()
        if self.world.is_main:
            self.states.save(self.stepper.step, state)
        self.world.barrier()

    def _state(self) -> dict[str, Any]:
        return {
            "stepper": capture(self.stepper),
            "progress": asdict(self.progress),
            "watch": self.watch.state(),
            "data": self._data(),
            "sums": self._sums,
        }

    def _data(self) -> dict[str, Any]:
        data = {key: self.batches.state[key] for key in ("data", "batch")}
        return data | {"frozen": self.frozen}

    def _finish_epoch(self, file: RunLog, *, scored: bool) -> None:
        weights = full_weights(self.stepper.objective.model)
        with self.world.together(patient=True):
            if self.world.is_main:
                self._write_checkpoint(weights, self.evaluated if scored else [])
                if self.metrics is not None:
                    epoch = self.progress.epoch - 1
                    file.record_scores(self.stepper.step - 1, epoch, figures_of(self.metrics))
                    self.progress.best_r1 = keep_if_best(
                        self.config.output, self.metrics, self.progress.best_r1
                    )
        self._save()
        self.dropped.end_epoch()
        if self.speed is not None:
            self.speed.forget_peak()
        if self.progress.epoch < self.config.epochs:
            self._stop_if_asked(is_saved=True)

    def _write_again(self) -> None:
        weights = full_weights(self.stepper.objective.model)
        with self.world.together(patient=True):
            if self.world.is_main:
                self._write_checkpoint(weights, self.evaluated)
        if not self._went_on:  # so that other data are told from these when it is run again
            self._save()

    def _write_checkpoint(self, weights: dict[str, Any], evaluated: list[Example]) -> None:
        progress, num_pairs = self.progress, self.batches.num_pairs
        finished = progress.epoch == self.config.epochs
        done = Done(num_pairs, self.world.size, self.stepper.step, progress.wall_s)
        self.fingerprint, self.metrics = write_checkpoint(
            self.config,
            self.stepper.objective.model.config,
            weights,
            self.preprocess,
            finish=self.finish if finished else None,
            evaluated=evaluated,
            done=done,
        )
