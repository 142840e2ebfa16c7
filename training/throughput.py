"""What a training step costs beside the encoders themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cots_model.errors import ConfigError
from training.batches import Batch, PairBatches
from training.config import TrainConfig
from training.data import read_examples
from training.engine.stepper import Stepper
from training.engine.world import join_world
from training.trainer import make_batches, make_model, make_stepper

_WARM_UP = 2


@dataclass(frozen=True)
class StepTimes:
    """Of one step, in seconds.

    Attributes:
        loading: making the batch.
        whole: the step itself.
        parts: of the step, by name.
        encoders: forward and backward pass of the two encoders alone, with the same batch.
    """

    loading: float
    whole: float
    parts: dict[str, float]
    encoders: float

    @property
    def ratio(self) -> float:
        """Pairs per second of the training, over those of the encoders alone."""
        return self.encoders / (self.loading + self.whole)


def measure_steps(config: TrainConfig, *, runs: int) -> list[StepTimes]:
    """Train a few steps as configured, without keeping anything, and time their parts.

    The encoders alone are measured between the steps, so that a ratio does not depend on what else
    the machine does.

    Args:
        config: of a run with `accumulate` 1 and an image tower that is trained.
        runs: steps that count.

    Raises:
        ConfigError: for other configurations, or if an epoch is shorter.
        CotsError: as `training.trainer.train`.
    """
    if config.freeze_image or config.accumulate > 1:
        raise ConfigError("only runs with freeze_image=false and accumulate=1 can be measured")
    with join_world(config.device) as world:
        torch.manual_seed(config.seed)
        model, preprocess = make_model(config)
        examples = [] if config.data.stream else read_examples(config.data.train)
        batches = make_batches(config, examples, None, preprocess, world)
        if len(batches) < _WARM_UP + runs:
            raise ConfigError(
                f"an epoch has {len(batches)} steps, and {_WARM_UP + runs} are needed; ask for "
                "fewer runs, or lower batch_size"
            )
        stepper = make_stepper(config, model, preprocess, world, len(batches))
        stepper.times.enabled = True
        return _measure(stepper, batches, runs)


def _measure(stepper: Stepper, batches: PairBatches, runs: int) -> list[StepTimes]:
    measured = []
    stream = batches.epoch(0)
    for _ in range(_WARM_UP + runs):
        started = time.perf_counter()
        batch = next(stream)
        loaded = time.perf_counter()
        stepper.run([batch])  # its losses are read back, so a GPU is done, too
        ended = time.perf_counter()
        parts = stepper.times.take()
        _encode_alone(stepper, batch)
        encoders = stepper.times.take()["encoders"]
        measured.append(StepTimes(loaded - started, ended - loaded, parts, encoders))
    return measured[_WARM_UP:]


def _encode_alone(stepper: Stepper, batch: Batch) -> None:
    """Forward and backward pass of the online encoders, of the sum of what they give."""
    model, device = stepper.objective.model, stepper.world.device
    batch = batch.to(device)
    with stepper.times("encoders"):
        with torch.autocast(
            device.type, torch.bfloat16, enabled=stepper.config.precision == "bf16"
        ):
            features: Sequence[torch.Tensor] = (
                model.encode_image(batch.image),
                model.encode_text(batch.tok_BL, batch.mask_BL),
            )
        torch.stack([feature.sum() for feature in features]).sum().backward()
    stepper.objective.zero_grad(set_to_none=True)
