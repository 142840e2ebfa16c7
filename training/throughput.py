"""What a training step costs beside the encoders themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from cots_model.errors import ConfigError
from training.batches import Batch, PairBatches
from training.config import TrainConfig
from training.data import read_examples
from training.engine.speed import Speed
from training.engine.stepper import Stepper
from training.engine.world import join_world
from training.trainer import make_batches, make_model, make_stepper

_WARM_UP = 2


@dataclass(frozen=True)
class StepTimes:
    """Seconds of steps.

    Attributes:
        block: per step of a stretch of steps without a pause, loading included.
        loading: per step, of that, waiting for the batch.
        parts: of single steps, by name.
        encoders: forward and backward pass of the two encoders alone, with the same batches as
            those, measured between them.
        speed: of each step of the stretch, as a run logs it (`training.engine.speed`).
    """

    block: float
    loading: float
    parts: list[dict[str, float]]
    encoders: list[float]
    speed: list[dict[str, float]]


def measure_steps(config: TrainConfig, *, runs: int) -> StepTimes:
    """Train some steps as configured, without keeping anything, and time them.

    First `runs` steps as a run does them, with nothing in between; then as many whose parts are
    timed, and after each the encoders alone with the same batch.

    Args:
        config: of a run with `accumulate` 1 and an image tower that is trained.
        runs: steps of each kind.

    Raises:
        ConfigError: for other configurations, or several processes.
        CotsError: as `training.trainer.train`.
    """
    if config.freeze_image or config.freeze_text or config.accumulate > 1:
        raise ConfigError(
            "only runs with freeze_image=false, freeze_text=false and accumulate=1 can be measured"
        )
    with join_world(config.device) as world:
        if world.size > 1:
            raise ConfigError(
                f"{world.size} processes cannot be measured; start one, without torchrun"
            )
        torch.manual_seed(config.seed)
        model, preprocess = make_model(config)
        stream = config.data.stream
        examples = [] if stream else read_examples(config.data.train, for_training=True)
        batches = make_batches(config, examples, None, None, preprocess, world)
        stepper = make_stepper(config, model, preprocess, world, len(batches))
        return _measure(stepper, _endless(batches), runs)


def _endless(batches: PairBatches) -> Iterator[Batch]:
    for epoch in count():
        yield from batches.epoch(epoch)


def _measure(stepper: Stepper, stream: Iterator[Batch], runs: int) -> StepTimes:
    for _ in range(_WARM_UP):
        stepper.run([next(stream)])
    speed, figures, loading = Speed(stepper.config, stepper), [], 0.0
    started = time.perf_counter()
    for _ in range(runs):
        asked = time.perf_counter()
        batch = next(stream)
        begun = time.perf_counter()
        stepper.run([batch])  # its losses are read back, so a GPU is done, too
        step_s, wait_s = time.perf_counter() - begun, begun - asked
        figures.append(speed.figures([batch], step_s=step_s, wait_s=wait_s))
        loading += begun - asked
    block = time.perf_counter() - started
    stepper.times.enabled = True
    parts, encoders = [], []
    for _ in range(runs):
        batch = next(stream)
        stepper.run([batch])
        parts.append(stepper.times.take())
        _encode_alone(stepper, batch)
        encoders.append(stepper.times.take()["encoders"])
    return StepTimes(block / runs, loading / runs, parts, encoders, figures)


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
