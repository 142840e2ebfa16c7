"""The model card: what was trained, on what, how long, and how well it retrieves."""

from __future__ import annotations

import datetime

import torch
import yaml

from cots_model.encoder import resolve_device
from cots_model.hardware import describe_hardware
from training.config import TrainConfig
from training.metrics import Recall, RetrievalMetrics


def model_card(
    config: TrainConfig,
    metrics: RetrievalMetrics | None,
    *,
    num_pairs: int,
    step_pairs: int,
    step: int,
    wall_s: float,
) -> str:
    """Markdown for the checkpoint's README.md, with measured figures only."""
    notes = f"{config.notes.strip()}\n\n" if config.notes.strip() else ""
    values = config.model_dump(mode="json", exclude={"notes"})
    return f"""# {config.name}

A COTS checkpoint: two separate encoders that put pictures and sentences into one space, where a
dot product says how well they match.

{notes}## Training

{_training(config, num_pairs, step_pairs, step, wall_s)}
## Scores

{_scores(metrics) if metrics else "Not scored." + chr(10)}
## Configuration

```yaml
{yaml.safe_dump(values, sort_keys=False).rstrip()}
```
"""


def _training(
    config: TrainConfig, num_pairs: int, step_pairs: int, step: int, wall_s: float
) -> str:
    pairs_per_s = step * step_pairs / max(wall_s, 1e-9)
    towers = [n for n, f in (("image", config.freeze_image), ("text", config.freeze_text)) if f]
    frozen = f", after embedding with the frozen {' and '.join(towers)} tower" if towers else ""
    steps = f"""\
- Steps: {step:,}, each of {step_pairs} pairs
- Data: {num_pairs:,} pictures, of which an epoch takes {num_pairs // step_pairs * step_pairs:,}
- Time: {wall_s / 60:.0f} minutes ({pairs_per_s:.0f} pairs/s){frozen}
"""
    first = ", ".join(f"`{source}`" for source in (config.init.image, *config.init.beside))
    machine = describe_hardware(resolve_device(config.device))
    return f"""\
- Date: {datetime.datetime.now(datetime.UTC).date().isoformat()}
- Objective: {_objective(config)}
{steps if config.epochs else ""}\
- First weights: image {first}; text `{config.init.text}`
- Hardware: {machine.summary()}, torch {torch.__version__}
- Command: `cots train pretrain --config FILE` with the configuration below
"""


def _objective(config: TrainConfig) -> str:
    objective = config.objective
    levels = ["projections in closed form"] if config.regression.is_first else []
    if config.epochs:
        levels += ["instance level (momentum contrast, eq. 4-10)"]
        levels += ["task level (eq. 11-14)"] if objective.task.weight else []
        levels += ["hidden patches (eq. 1)"] if objective.vision.weight else []
        levels += ["hidden words (eq. 2)"] if objective.language.weight else []
        levels += ["momentum filter (eq. 15)"] if objective.filter.enabled else []
    levels += ["projections in closed form"] if config.regression.is_last else []
    return ", ".join(levels)


def _scores(metrics: RetrievalMetrics) -> str:
    rows = [
        "| direction | R@1 | R@5 | R@10 | median rank | queries |",
        "|---|---|---|---|---|---|",
        _row("text to image", metrics.text_to_image),
        _row("image to text", metrics.image_to_text),
    ]
    return "\n".join(rows) + "\n"


def _row(name: str, side: Recall) -> str:
    return (
        f"| {name} | {side.r1:.1f} | {side.r5:.1f} | {side.r10:.1f} | {side.median_rank:g} "
        f"| {side.num_queries:,} |"
    )
