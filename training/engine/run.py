"""One run: steps, saved states, log, checkpoints; stopped at any step it goes on exactly."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from cots_model.checkpoint import CARD_FILE, CONFIG_FILE, HASHED_FILES
from cots_model.encoder import Encoder
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from training.batches import Batch, PairBatches
from training.config import TrainConfig
from training.engine.dropped import DroppedLog, FilterReport
from training.engine.run_log import RunLog
from training.engine.same_run import (
    check_same_data,
    check_same_run,
    sums_of,
    warn_of_other_sums,
    write_run,
)
from training.engine.snapshot import capture, full_weights, restore
from training.engine.speed import Speed
from training.engine.states import StateFolder
from training.engine.stepper import Stepper, StepReport
from training.engine.stopping import StoppedError, StopRequest
from training.errors import TrainingError
from training.evaluate import evaluate, format_metrics
from training.example import Example
from training.metrics import RetrievalMetrics
from training.report import model_card

log = logging.getLogger(__name__)

STATES, FAILED, BEST = "states", "failed", "best"
_MAY_CHANGE = ("output", "device", "engine", "data", "notes", "evaluate_every")
_NAMED = 64  # pictures that an error lists; the rest is in the state


@dataclass
class Progress:
    """Where a run is, besides the stepper's state.

    Attributes:
        epoch: that is being trained, from 0.
        place: in the epoch's stream; `None` at its start.
        wall_s: seconds of training so far.
        best_r1: best mean of the two R@1 so far; below 0 before the first scoring.
    """

    epoch: int = 0
    place: dict[str, Any] | None = None
    wall_s: float = 0.0
    best_r1: float = -1.0


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
            report: keeps and shows the pairs that the filter drops.
            finish: changes the model of the last checkpoint before it is written.

        Raises:
            ConfigError: if the output folder holds a run with other values.
            TrainingError: if all its states are damaged.
        """
        self.config, self.stepper, self.batches = config, stepper, batches
        self.preprocess, self.evaluated, self.stop = preprocess, evaluated, stop
        self.finish = finish
        self.world = stepper.world
        self._sums = sums_of(self.world.device) | {
            "engine.compile": config.engine.compile,
            "engine.parallel": config.engine.parallel if self.world.size > 1 else "",
        }
        self.states = StateFolder(config.output / STATES, keep=config.engine.keep_states)
        self.progress = Progress()
        self.metrics: RetrievalMetrics | None = None
        self.fingerprint = ""
        check_same_run(config.output, self.states.folder, config, may_change=_MAY_CHANGE)
        self.speed = Speed(config, stepper) if self.world.is_main else None
        saved = self.states.load_latest()
        if saved is not None:
            step, state = saved
            check_same_data(state["data"], self._data())
            if self.world.is_main:
                warn_of_other_sums(state.get("sums", {}), self._sums)
            restore(stepper, state["stepper"])
            self.progress = Progress(**state["progress"])
            log.info("going on at step %d of %s", step, config.output)
        self.dropped = DroppedLog(config, report, self.world, step=stepper.step)

    def train(self) -> None:
        """Run the epochs that are left.

        Raises:
            StoppedError: if the process was asked to end; the state is saved.
            TrainingError: if a figure is not finite; the state is saved beside the others.
            CotsError: of the data, the evaluation or another process.
        """
        main = self.world.is_main
        if main:
            write_run(self.config.output, self.config)
        with (
            self.dropped,
            RunLog(self.config.output, step=self.stepper.step, enabled=main) as file,
        ):
            if self.progress.epoch >= self.config.epochs:  # it was finished before
                self._write_again()
            while self.progress.epoch < self.config.epochs:
                self._epoch(file)
                self.progress.epoch += 1
                self.progress.place = None
                self._finish_epoch(file)

    def _epoch(self, file: RunLog) -> None:
        """Train the rest of one epoch."""
        bar = tqdm(
            total=self.stepper.steps_per_epoch,
            initial=self.stepper.step - self.progress.epoch * self.stepper.steps_per_epoch,
            desc=f"epoch {self.progress.epoch}",
            unit="step",
            disable=None if self.world.is_main else True,
        )
        losses, epoch_s = list[float](), -self.progress.wall_s
        with bar:
            for group in self._groups():
                started = time.perf_counter()
                report = self._step(group)
                step_s = time.perf_counter() - started
                self.progress.wall_s += step_s
                self._record(file, report, group, step_s)
                self.dropped.record(self.stepper.step - 1, group, report)
                bar.update()
                losses.append(report.losses["total"])
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
                self._save_if_due()
        if losses:
            epoch_s += self.progress.wall_s
            mean = sum(losses) / len(losses)
            log.info("epoch %d: loss %.4f, %.0f s", self.progress.epoch, mean, epoch_s)

    def _groups(self) -> Iterator[list[Batch]]:
        """The batches of each optimiser step; a short last group of an epoch is dropped."""
        group: list[Batch] = []
        batches = self.batches.epoch(self.progress.epoch, self.progress.place)
        while True:
            with self.world.together():
                batch = next(batches, None)
            if batch is None:
                return
            group.append(batch)
            if len(group) == self.config.accumulate:
                self.progress.place = self.batches.state
                yield group
                group = []

    def _step(self, group: list[Batch]) -> StepReport:
        try:
            return self.stepper.run(group)
        except TrainingError as err:
            raise self._keep_failed(err, group) from err

    def _keep_failed(self, err: TrainingError, group: list[Batch]) -> TrainingError:
        """Save the state and what the step saw; all processes come here together."""
        own = [draw.example.id for batch in group for draw in batch.draws]
        names = list(dict.fromkeys(name for ids in self.world.gather_objects(own) for name in ids))
        state = self._state() | {"pictures": names}
        folder = StateFolder(self.config.output / FAILED, keep=1)
        if self.world.is_main:
            folder.save(self.stepper.step, state)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return TrainingError(
            f"{err}; pictures {', '.join(names[:_NAMED])}{more}; state in {folder.folder}"
        )

    def _record(self, file: RunLog, report: StepReport, group: list[Batch], step_s: float) -> None:
        step = self.stepper.step - 1
        if self.speed is not None and step % self.config.engine.log_every == 0:
            file.record(step, {**report.figures(), **self.speed.figures(group, step_s)})

    def _save_if_due(self) -> None:
        stop = self.world.any(self.stop.signal is not None)
        if stop or self.stepper.step % self.config.engine.save_every == 0:
            self._save()
        if stop:
            raise StoppedError(
                f"stopped after step {self.stepper.step - 1}; run the same command to go on"
            )

    def _save(self) -> None:
        state = self._state()
        if self.world.is_main:
            self.states.save(self.stepper.step, state)
        self.world.barrier()

    def _state(self) -> dict[str, Any]:
        return {
            "stepper": capture(self.stepper),
            "progress": asdict(self.progress),
            "data": self._data(),
            "sums": self._sums,
        }

    def _data(self) -> dict[str, Any]:
        return {key: self.batches.state[key] for key in ("data", "batch")}

    def _finish_epoch(self, file: RunLog) -> None:
        epoch = self.progress.epoch
        due = epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs
        weights = full_weights(self.stepper.objective.model)
        with self.world.together(patient=True):
            if self.world.is_main:
                self._write_checkpoint(weights, self.evaluated if due else [])
                if self.metrics is not None and due:
                    file.record(self.stepper.step - 1, _figures(self.metrics))
                    self._keep_if_best()
        self._save()
        self.dropped.end_epoch()
        if self.speed is not None:
            self.speed.forget_peak()

    def _write_again(self) -> None:
        weights = full_weights(self.stepper.objective.model)
        with self.world.together(patient=True):
            if self.world.is_main:
                self._write_checkpoint(weights, self.evaluated)

    def _write_checkpoint(self, weights: dict[str, Any], evaluated: list[Example]) -> None:
        """Write the online model, score what was written, and put the figures on its card."""
        config, folder = self.config, self.config.output
        model = CotsModel(self.stepper.objective.model.config)
        model.load_state_dict(weights)
        if self.finish is not None and self.progress.epoch == config.epochs:
            self.finish(model.to(self.world.device))
        self.fingerprint = model.save_pretrained(
            folder, self.preprocess, card="", storage=config.storage
        )
        self.metrics = None
        if evaluated:
            self.metrics = evaluate(
                Encoder.load(folder, device=config.device),
                evaluated,
                num_frames=config.data.num_frames,
                max_broken_share=config.data.max_broken_share,
            )
            log.info("scores\n%s", format_metrics(self.metrics))
        card = model_card(
            config,
            self.metrics,
            num_pairs=self.batches.num_pairs,
            step_pairs=config.batch_size * config.accumulate * self.world.size,
            step=self.stepper.step,
            wall_s=self.progress.wall_s,
        )
        (folder / CARD_FILE).write_text(card, "utf-8")

    def _keep_if_best(self) -> None:
        assert self.metrics is not None
        r1 = (self.metrics.text_to_image.r1 + self.metrics.image_to_text.r1) / 2
        if r1 > self.progress.best_r1:
            self.progress.best_r1 = r1
            best = self.config.output / BEST
            best.mkdir(exist_ok=True)
            for name in (*HASHED_FILES, CONFIG_FILE, CARD_FILE):
                shutil.copy2(self.config.output / name, best / name)


def _figures(metrics: RetrievalMetrics) -> dict[str, float]:
    sides = {"text_to_image": metrics.text_to_image, "image_to_text": metrics.image_to_text}
    return {
        f"{name}/r{k}": value
        for name, side in sides.items()
        for k, value in ((1, side.r1), (5, side.r5), (10, side.r10))
    }
