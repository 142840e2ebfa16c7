"""The training of an image tokenizer: reconstruct pictures through a few discrete codes.

    result = train_tokenizer(load_tokenizer_config(Path("training/configs/tokenizer_mini.yaml")))

After every epoch the output folder holds the tokenizer, a line more in `log.jsonl`, and
`reconstructions.png`. Shape letters: B batch, C channels, H and W pixels, h and w tokens, K codes.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cots_model.encoder import resolve_device
from training.data import Example, read_examples
from training.dvae import (
    Dvae,
    batch_kl_to_uniform,
    code_statistics,
    gumbel_noise,
    gumbel_softmax,
    kl_to_uniform,
    spread_codes,
)
from training.errors import TrainingError
from training.optim import lr_factor, make_optimiser, set_lr
from training.tokenizer_config import CollapseConfig, RelaxationConfig, TokenizerTrainConfig
from training.tokenizer_data import PictureBatches, whole_pictures, write_comparison
from training.tokenizer_source import save_dvae

log = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
PICTURE_FILE = "reconstructions.png"


class CodebookCollapseError(TrainingError):
    """So few codes are in use that the tokenizer is worth nothing as a target."""


@dataclass(frozen=True)
class StepReport:
    """What one step came to.

    Attributes:
        reconstruction: mean squared error in [0, 1] through relaxed codes.
        kl: KL(codes || uniform) in nats per token.
        temperature: of the relaxation.
        count_K: how often each code was the most likely, int64.
    """

    reconstruction: float
    kl: float
    temperature: float
    count_K: Tensor


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
    """

    epoch: int
    reconstruction: float
    kl: float
    temperature: float
    usage: float
    perplexity: float
    held_out: float | None
    wall_s: float


@dataclass(frozen=True)
class TokenizerResult:
    """What a finished run leaves: its folder, the tokenizer's fingerprint and the last epoch."""

    folder: Path
    fingerprint: str
    last: EpochReport


class TokenizerTrainer:
    """Network and optimiser of one run."""

    def __init__(self, config: TokenizerTrainConfig, dvae: Dvae, steps_per_epoch: int) -> None:
        """Take over `dvae`."""
        self.config = config
        self.device = resolve_device(config.device)
        self.dvae = dvae.to(self.device)
        self.optimiser = make_optimiser(self.dvae, config.optimiser)
        self.steps_per_epoch = steps_per_epoch
        self.step = 0

    @property
    def share_annealed(self) -> float:
        """How far temperature and KL weight have gone, from 0 to 1."""
        return min(1.0, self.step / (self.config.relaxation.anneal_epochs * self.steps_per_epoch))

    def train_step(self, pixels_BCHW: Tensor) -> StepReport:
        """One optimiser step on pictures in [0, 1] of any size that `Dvae.fit` takes.

        Raises:
            TrainingError: if the loss is not finite, naming the step.
        """
        config = self.config
        factor = lr_factor(self.step, self.steps_per_epoch, config.epochs, config.optimiser)
        set_lr(self.optimiser, factor)
        temperature, kl_weight = annealed(config.relaxation, self.share_annealed)
        pixels_BCHW = self.dvae.fit(pixels_BCHW.to(self.device))
        logits_BKhw = self.dvae.encode(pixels_BCHW)
        code_BKhw = gumbel_softmax(logits_BKhw, gumbel_noise(logits_BKhw), temperature)
        reconstruction = F.mse_loss(self.dvae.decode(code_BKhw), pixels_BCHW)
        kl = kl_to_uniform(logits_BKhw)
        balance = config.relaxation.balance_weight * batch_kl_to_uniform(logits_BKhw)
        self._update(reconstruction + kl_weight * kl + balance)
        most_likely = logits_BKhw.argmax(dim=1).flatten()
        count_K = torch.bincount(most_likely, minlength=self.dvae.vocab_size).cpu()
        return StepReport(reconstruction.item(), kl.item(), temperature, count_K)

    def _update(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at step {self.step}; lower the lr")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.dvae.parameters(), self.config.optimiser.clip_norm)
        self.optimiser.step()
        self.step += 1


def annealed(config: RelaxationConfig, share: float) -> tuple[float, float]:
    """Temperature and KL weight at `share` in [0, 1] of the annealing: half a cosine."""
    rest = (1 + math.cos(math.pi * share)) / 2
    temperature = config.temperature_end + rest * (
        config.temperature_start - config.temperature_end
    )
    return temperature, config.kl_weight_end + rest * (config.kl_weight - config.kl_weight_end)


def train_tokenizer(config: TokenizerTrainConfig) -> TokenizerResult:
    """Run a whole training as configured and write the tokenizer.

    Raises:
        InputError: if data are missing or broken.
        CodebookCollapseError: if after an epoch too few codes are in use; see `CollapseConfig`.
        TrainingError: if the loss stops being finite.
    """
    torch.manual_seed(config.seed)
    examples = read_examples(config.data.train)
    evaluated = read_examples(config.data.evaluate) if config.data.evaluate else []
    batches = _batches(examples, config)
    trainer = TokenizerTrainer(config, Dvae(config.model), len(batches))
    shown_BCHW = next(_whole(evaluated or examples, config, config.num_shown)).to(trainer.device)
    spread_codes(trainer.dvae, trainer.dvae.fit(next(batches.epoch(0)).to(trainer.device)))
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / LOG_FILE).unlink(missing_ok=True)
    for epoch in range(config.epochs):
        report = _run_epoch(trainer, batches, evaluated, epoch)
        _write_report(config.output, report)
        _write_pictures(trainer.dvae, shown_BCHW, config.output)
        check_collapse(config.collapse, report, config.model.vocab_size)
        fingerprint = save_dvae(trainer.dvae, config.output)
    return TokenizerResult(config.output, fingerprint, report)


def _batches(examples: Sequence[Example], config: TokenizerTrainConfig) -> PictureBatches:
    return PictureBatches(
        examples,
        config.picture,
        batch_size=config.batch_size,
        seed=config.seed,
        num_workers=config.data.num_workers,
        max_broken_share=config.data.max_broken_share,
    )


def check_collapse(config: CollapseConfig, report: EpochReport, vocab_size: int) -> None:
    """Stop a run whose codebook has collapsed.

    Raises:
        CodebookCollapseError: with the figures, the floors, and what to change.
    """
    if report.epoch < config.warmup_epochs:
        return
    if report.kl < config.min_kl:
        remedy = "the codes say nothing: lower relaxation.kl_weight and kl_weight_end"
    elif report.perplexity < config.min_perplexity or report.usage < config.min_usage:
        remedy = (
            "few codes say all: lower optimiser.lr, raise relaxation.kl_weight or anneal_epochs, "
            "or take a smaller model.vocab_size or more pictures"
        )
    else:
        return
    raise CodebookCollapseError(
        f"the codebook collapsed: after epoch {report.epoch} the perplexity is "
        f"{report.perplexity:.1f} of {vocab_size} codes (collapse.min_perplexity "
        f"{config.min_perplexity:g}), {report.usage:.1%} of them are used (min_usage "
        f"{config.min_usage:.1%}), the KL is {report.kl:.3f} (min_kl {config.min_kl:g}); {remedy}"
    )


def _run_epoch(
    trainer: TokenizerTrainer, batches: PictureBatches, evaluated: Sequence[Example], epoch: int
) -> EpochReport:
    started = time.perf_counter()
    trainer.dvae.train()
    steps = []
    name = f"epoch {epoch}"
    bar = tqdm(batches.epoch(epoch), total=len(batches), desc=name, unit="step", disable=None)
    for pixels_BCHW in bar:
        steps.append(trainer.train_step(pixels_BCHW))
        bar.set_postfix(reconstruction=f"{steps[-1].reconstruction:.4f}")
    wall_s = time.perf_counter() - started
    usage, perplexity = code_statistics(torch.stack([step.count_K for step in steps]).sum(dim=0))
    return EpochReport(
        epoch=epoch,
        reconstruction=fmean(step.reconstruction for step in steps),
        kl=fmean(step.kl for step in steps),
        temperature=steps[-1].temperature,
        usage=usage,
        perplexity=perplexity,
        held_out=_held_out(trainer, evaluated) if evaluated else None,
        wall_s=wall_s,
    )


@torch.no_grad()
def _held_out(trainer: TokenizerTrainer, evaluated: Sequence[Example]) -> float:
    dvae = trainer.dvae.eval()
    total, num_pictures = 0.0, 0
    for pixels_BCHW in _whole(evaluated, trainer.config, trainer.config.batch_size):
        original_BCHW = dvae.fit(pixels_BCHW.to(trainer.device))
        total += F.mse_loss(dvae.paint(original_BCHW), original_BCHW).item() * len(pixels_BCHW)
        num_pictures += len(pixels_BCHW)
    return total / num_pictures


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


def _write_report(folder: Path, report: EpochReport) -> None:
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
