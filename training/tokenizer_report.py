"""What an epoch of an image tokenizer's training came to: summed, logged, judged."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from training.dvae import code_statistics
from training.engine.run_log import LOG_FILE
from training.errors import TrainingError
from training.tokenizer_config import CollapseConfig
from training.tokenizer_trainer import TokenizerStepReport

log = logging.getLogger(__name__)


class CodebookCollapseError(TrainingError):
    """So few codes are in use that the tokenizer is worth nothing as a target."""


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to; one line of `log.jsonl`.

    Attributes:
        epoch: from 0.
        reconstruction: mean squared error in [0, 1] through relaxed codes, mean of the steps.
        kl: KL(codes || uniform) in nats per token, mean of the steps.
        temperature: of the last step.
        usage: share of the codes that were the most likely one somewhere in the epoch.
        perplexity: of those codes' frequencies.
        held_out: mean squared error through the most likely codes, on the evaluation pictures.
        wall_s: seconds of training.
        kl_weight: of the last step.
    """

    epoch: int
    reconstruction: float
    kl: float
    temperature: float
    usage: float
    perplexity: float
    held_out: float | None
    wall_s: float
    kl_weight: float = 0.0  # states of before have none


@dataclass
class EpochSoFar:
    """Where a run is in an epoch, and the sums over its steps."""

    number: int
    count_K: Tensor
    place: int = 0  # steps drawn, those without any readable picture too
    num_steps: int = 0
    reconstruction: float = 0.0
    kl: float = 0.0
    temperature: float = 0.0
    wall_s: float = 0.0
    kl_weight: float = 0.0

    def add(self, report: TokenizerStepReport) -> None:
        """Count one step more."""
        self.num_steps += 1
        self.reconstruction += report.reconstruction
        self.kl += report.kl
        self.temperature = report.temperature
        self.kl_weight = report.kl_weight
        self.count_K = self.count_K + report.count_K

    def report(self, held_out: float | None) -> EpochReport:
        """Means and shares of all steps; at least one must have been added."""
        usage, perplexity = code_statistics(self.count_K)
        return EpochReport(
            epoch=self.number,
            reconstruction=self.reconstruction / self.num_steps,
            kl=self.kl / self.num_steps,
            temperature=self.temperature,
            usage=usage,
            perplexity=perplexity,
            held_out=held_out,
            wall_s=self.wall_s,
            kl_weight=self.kl_weight,
        )


def check_collapse(
    config: CollapseConfig, report: EpochReport, vocab_size: int, folder: Path
) -> None:
    """Stop a run whose codebook has collapsed.

    Args:
        config: the floors.
        report: of the epoch.
        vocab_size: how many codes there are.
        folder: of the run.

    Raises:
        CodebookCollapseError: with the figures, the floors, and what to change.
    """
    if report.epoch < config.warmup_epochs:
        return
    if report.kl < config.min_kl:
        remedy = "the codes say nothing: lower relaxation.kl_weight and kl_weight_end"
    elif report.perplexity < config.min_perplexity or report.usage < config.min_usage:
        remedy = (
            "few codes say all: lower optimiser.lr, raise relaxation.balance_weight or "
            "anneal_epochs, or take a smaller model.vocab_size or more pictures"
        )
    else:
        return
    raise CodebookCollapseError(
        f"the codebook collapsed: after epoch {report.epoch} the perplexity is "
        f"{report.perplexity:.1f} of {vocab_size} codes (collapse.min_perplexity "
        f"{config.min_perplexity:g}), {report.usage:.1%} of them are used (min_usage "
        f"{config.min_usage:.1%}), the KL is {report.kl:.3f} (min_kl {config.min_kl:g}); {remedy}, "
        f"and give another output or remove {folder}"
    )


def write_report(folder: Path, report: EpochReport) -> None:
    """Tell the log, and add a line to the file of that name."""
    log.info(
        "epoch %d: reconstruction %.5f, kl %.2f, perplexity %.1f, usage %.1f %%, %.0f s",
        report.epoch,
        report.reconstruction,
        report.kl,
        report.perplexity,
        100 * report.usage,
        report.wall_s,
    )
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(report)) + "\n")


def cut_log(folder: Path, num_epochs: int) -> None:
    """Forget the lines of epochs that are trained again."""
    path = folder / LOG_FILE
    if path.is_file():
        lines = path.read_text("utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:num_epochs]), "utf-8")
