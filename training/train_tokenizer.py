"""The training of an image tokenizer: reconstruct pictures through a few discrete codes.

    result = train_tokenizer(load_tokenizer_config(Path("training/configs/tokenizer_mini.yaml")))

After every epoch the output folder holds the tokenizer, a line more in `log.jsonl`, and
`reconstructions.png`. A run that was stopped goes on where it was. Shape letters: B batch,
C channels, H and W pixels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cots_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from cots_model.errors import CotsError
from training.data import Example, read_examples
from training.dvae import Dvae, spread_codes
from training.engine.progress import StepsShown
from training.engine.run_log import LOG_FILE
from training.engine.same_run import (
    check_output,
    check_same_data,
    sums_of,
    warn_of_other_sums,
    write_run,
)
from training.engine.states import STATES, StateFolder
from training.engine.stopping import StoppedError, StopRequest, listen_for_stop
from training.tokenizer_config import TokenizerTrainConfig
from training.tokenizer_data import PictureBatches, whole_pictures, write_comparison
from training.tokenizer_report import (
    EpochReport,
    EpochSoFar,
    check_collapse,
    cut_log,
    write_report,
)
from training.tokenizer_source import save_dvae
from training.tokenizer_trainer import TokenizerTrainer

log = logging.getLogger(__name__)

PICTURE_FILE = "reconstructions.png"

_FILES = (CONFIG_FILE, WEIGHTS_FILE, LOG_FILE, PICTURE_FILE, STATES)
_MAY_CHANGE = ("output", "device", "data", "collapse", "num_shown", "save_every", "keep_states")


@dataclass(frozen=True)
class TokenizerResult:
    """What a finished run leaves: its folder, the tokenizer's fingerprint and the last epoch."""

    folder: Path
    fingerprint: str
    last: EpochReport


def train_tokenizer(config: TokenizerTrainConfig) -> TokenizerResult:
    """Run a whole training as configured, or what is left of it, and write the tokenizer.

    Raises:
        ConfigError: if the output folder holds a run with other values or other data.
        InputError: if data are missing or broken.
        CodebookCollapseError: if after an epoch too few codes are in use; see `CollapseConfig`.
        StoppedError: if the process was asked to end; the state is saved.
        TrainingError: if the loss stops being finite, or all saved states are damaged.
    """
    check_output(config.output, config, may_change=_MAY_CHANGE, files=_FILES)
    torch.manual_seed(config.seed)
    examples = read_examples(config.data.train, for_training=True)
    evaluated = read_examples(config.data.evaluate) if config.data.evaluate else []
    with listen_for_stop() as stop:
        return _TokenizerRun(config, examples, evaluated, stop).train()


class _TokenizerRun:
    """Trains, and keeps what is needed to go on."""

    def __init__(
        self,
        config: TokenizerTrainConfig,
        examples: Sequence[Example],
        evaluated: Sequence[Example],
        stop: StopRequest,
    ) -> None:
        self.config, self.evaluated, self.stop = config, evaluated, stop
        self.batches = _batches(examples, config)
        self.trainer = TokenizerTrainer(config, Dvae(config.model), len(self.batches))
        self.states = StateFolder(config.output / STATES, keep=config.keep_states)
        self.last: EpochReport | None = None
        self.epoch = self._first(0)
        self._data = {"data": self.batches.fingerprint()}
        self._sums = sums_of(self.trainer.device)
        self._shown_BCHW = next(_whole(evaluated or examples, config, config.num_shown))
        saved = self.states.load_latest()
        if saved is not None:
            self._restore(*saved)
        else:
            self._spread_codes()

    def train(self) -> TokenizerResult:
        config = self.config
        write_run(config.output, config)
        cut_log(config.output, self.epoch.number)
        while self.epoch.number < config.epochs:
            self._steps()
            self._finish_epoch()
        assert self.last is not None
        return TokenizerResult(
            config.output, save_dvae(self.trainer.dvae, config.output), self.last
        )

    def _first(self, number: int) -> EpochSoFar:
        return EpochSoFar(number, torch.zeros(self.config.model.vocab_size, dtype=torch.int64))

    def _spread_codes(self) -> None:
        dvae = self.trainer.dvae
        for pixels_BCHW in self.batches.epoch(0):
            if pixels_BCHW is not None:
                spread_codes(dvae, dvae.fit(pixels_BCHW.to(self.trainer.device)))
                return

    def _restore(self, step: int, state: dict[str, Any]) -> None:
        check_same_data(state["data"], self._data)
        warn_of_other_sums(state["sums"], self._sums)
        self.trainer.load_state_dict(state["trainer"])
        self.epoch = EpochSoFar(**state["epoch"])
        self.last = EpochReport(**state["last"]) if state["last"] else None
        log.info("going on at step %d of %s", step, self.config.output)

    def _save(self) -> None:
        state = {
            "trainer": self.trainer.state_dict(),
            "epoch": dict(vars(self.epoch)),
            "last": asdict(self.last) if self.last else None,
            "data": self._data,
            "sums": self._sums,
        }
        self.states.save(self.trainer.step, state)

    def _steps(self) -> None:
        """Train the rest of the epoch."""
        epoch = self.epoch
        self.trainer.dvae.train()
        shown = StepsShown(
            log, f"epoch {epoch.number}", total=len(self.batches), initial=epoch.place
        )
        started = time.perf_counter()
        with shown:
            for pixels_BCHW in self._pictures():
                epoch.place += 1
                if pixels_BCHW is not None:
                    report = self.trainer.train_step(pixels_BCHW)
                    epoch.add(report)
                    shown.step(f"reconstruction {report.reconstruction:.4f}")
                epoch.wall_s += time.perf_counter() - started
                started = time.perf_counter()
                self._save_if_due()

    def _pictures(self) -> Iterator[Tensor | None]:
        """The rest of the epoch's pictures, step by step."""
        try:
            yield from self.batches.epoch(self.epoch.number, self.epoch.place)
        except CotsError:
            self._stop_if_asked()  # what ended a loading process may be what asks for it
            raise

    def _save_if_due(self) -> None:
        self._stop_if_asked()
        to_be_scored = self.epoch.place == len(self.batches) and self.evaluated
        if to_be_scored or self.trainer.step % self.config.save_every == 0:
            self._save()

    def _stop_if_asked(self) -> None:
        if self.stop.signal is None:
            return
        step = self.trainer.step
        if step:
            self._save()
        when = f"after step {step - 1}" if step else "before the first step"
        raise StoppedError(f"stopped {when}; run the same command to go on")

    def _finish_epoch(self) -> None:
        config, dvae = self.config, self.trainer.dvae
        self.last = self.epoch.report(self._held_out() if self.evaluated else None)
        write_report(config.output, self.last)
        _write_pictures(dvae, self._shown_BCHW.to(self.trainer.device), config.output)
        check_collapse(config.collapse, self.last, config.model.vocab_size, config.output)
        save_dvae(dvae, config.output)
        self.epoch = self._first(self.epoch.number + 1)
        self._save()

    @torch.no_grad()
    def _held_out(self) -> float:
        dvae = self.trainer.dvae.eval()
        total, num_pictures = 0.0, 0
        for pixels_BCHW in _whole(self.evaluated, self.config, self.config.batch_size):
            original_BCHW = dvae.fit(pixels_BCHW.to(self.trainer.device))
            error = F.mse_loss(dvae.paint(original_BCHW), original_BCHW)
            total += error.item() * len(pixels_BCHW)
            num_pictures += len(pixels_BCHW)
        return total / num_pictures


def _batches(examples: Sequence[Example], config: TokenizerTrainConfig) -> PictureBatches:
    return PictureBatches(
        examples,
        config.picture,
        batch_size=config.batch_size,
        seed=config.seed,
        num_workers=config.data.num_workers,
        max_broken_share=config.data.max_broken_share,
    )


def _whole(
    examples: Sequence[Example], config: TokenizerTrainConfig, batch_size: int
) -> Iterator[Tensor]:
    return whole_pictures(
        examples,
        config.picture,
        batch_size=batch_size,
        max_broken_share=config.data.max_broken_share,
    )


@torch.no_grad()
def _write_pictures(dvae: Dvae, pixels_BCHW: Tensor, folder: Path) -> None:
    original_BCHW = dvae.eval().fit(pixels_BCHW)
    write_comparison(folder / PICTURE_FILE, original_BCHW, dvae.paint(original_BCHW))
