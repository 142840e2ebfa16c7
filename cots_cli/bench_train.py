"""A training step beside its encoders alone, and where the difference goes."""

from __future__ import annotations

import os
from statistics import median

from cots_cli.bench_report import Report, summarise
from cots_model.encoder import resolve_device
from cots_model.hardware import describe_hardware
from training.config import TrainConfig
from training.throughput import measure_steps

_ABOVE = ("speed/pairs_per_s", "speed/step_s", "speed/wait_s")  # of the whole stretch


def measure_training(config: TrainConfig, *, runs: int) -> Report:
    """Time steps of a run and their parts on this machine; see `training.throughput`.

    Args:
        config: of the run.
        runs: steps that count.
    """
    load = os.getloadavg()[0]
    times = measure_steps(config, runs=runs)
    seconds = {
        "encoders alone": times.encoders,
        **{part: [step[part] for step in times.parts] for part in times.parts[0]},
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
            "num_workers": config.data.num_workers,
            "compile": config.engine.compile,
            "activation_checkpointing": config.engine.activation_checkpointing,
        },
        stages=tuple(
            summarise(name, [s * 1000 for s in measured]) for name, measured in seconds.items()
        ),
        load_average=round(load, 2),
        figures={
            "step_ms": round(times.block * 1000, 2),
            "loading_ms": round(times.loading * 1000, 2),
            "pairs_per_s": round(config.batch_size / times.block, 2),
            "of_encoders_alone": round(median(times.encoders) / times.block, 4),
            **{
                name.removeprefix("speed/"): round(median(step[name] for step in times.speed), 4)
                for name in times.speed[0]
                if name not in _ABOVE
            },
        },
    )
