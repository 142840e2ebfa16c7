"""A training step beside its encoders alone, and where the difference goes."""

from __future__ import annotations

import os
from statistics import median

from cots_cli.bench_report import Report, summarise
from cots_model.encoder import resolve_device
from cots_model.hardware import describe_hardware
from training.config import TrainConfig
from training.throughput import measure_steps


def measure_training(config: TrainConfig, *, runs: int) -> Report:
    """Time steps of a run and their parts on this machine.

    Args:
        config: of the run.
        runs: steps that count.
    """
    load = os.getloadavg()[0]
    steps = measure_steps(config, runs=runs)
    seconds = {
        "encoders alone": [step.encoders for step in steps],
        "step": [step.loading + step.whole for step in steps],
        "loading": [step.loading for step in steps],
        **{part: [step.parts[part] for step in steps] for part in steps[0].parts},
        "rest": [step.whole - sum(step.parts.values()) for step in steps],
    }
    return Report(
        benchmark="train",
        model=config.model,
        model_fingerprint="",
        hardware=describe_hardware(resolve_device(config.device)),
        parameters={
            "run": config.name,
            "batch_size": config.batch_size,
            "precision": config.precision,
        },
        stages=tuple(
            summarise(name, [s * 1000 for s in measured]) for name, measured in seconds.items()
        ),
        load_average=round(load, 2),
        figures={
            "pairs_per_s": round(config.batch_size / median(s.loading + s.whole for s in steps), 3),
            "of_encoders_alone": round(median(step.ratio for step in steps), 4),
        },
    )
