"""One step of the training of an image tokenizer, and its state.

Shape letters: B batch, C channels, H and W pixels, h and w tokens, K codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cots_model.encoder import resolve_device
from training.dvae import Dvae, batch_kl_to_uniform, gumbel_noise, gumbel_softmax, kl_to_uniform
from training.errors import TrainingError
from training.optim import lr_factor, make_optimiser, set_lr
from training.seeds import mix_seeds
from training.tokenizer_config import RelaxationConfig, TokenizerTrainConfig


@dataclass(frozen=True)
class TokenizerStepReport:
    """What one step came to.

    Attributes:
        reconstruction: mean squared error in [0, 1] through relaxed codes.
        kl: KL(codes || uniform) in nats per token.
        temperature: of the relaxation.
        kl_weight: with which the KL counted.
        count_K: how often each code was the most likely, int64.
    """

    reconstruction: float
    kl: float
    temperature: float
    kl_weight: float
    count_K: Tensor


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

    def train_step(self, pixels_BCHW: Tensor) -> TokenizerStepReport:
        """One optimiser step on pictures in [0, 1] of any size that `Dvae.fit` takes.

        Its random numbers follow from the seed and the step alone.

        Raises:
            TrainingError: if the loss is not finite, naming the step.
        """
        config = self.config
        torch.manual_seed(mix_seeds(config.seed, self.step))
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
        return TokenizerStepReport(
            reconstruction.item(), kl.item(), temperature, kl_weight, count_K
        )

    def _update(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at step {self.step}; lower the lr")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.dvae.parameters(), self.config.optimiser.clip_norm)
        self.optimiser.step()
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on."""
        return {
            "step": self.step,
            "dvae": self.dvae.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.step = state["step"]
        self.dvae.load_state_dict(state["dvae"])
        self.optimiser.load_state_dict(state["optimiser"])


def annealed(config: RelaxationConfig, share: float) -> tuple[float, float]:
    """Temperature and KL weight at `share` in [0, 1] of the annealing: half a cosine."""
    rest = (1 + math.cos(math.pi * share)) / 2
    temperature = config.temperature_end + rest * (
        config.temperature_start - config.temperature_end
    )
    return temperature, config.kl_weight_end + rest * (config.kl_weight - config.kl_weight_end)
