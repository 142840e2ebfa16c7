"""The model card: what was trained, on what, how long, and how well it retrieves."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch
import yaml

from training.config import TrainConfig
from training.metrics import Recall, RetrievalMetrics


def model_card(
    config: TrainConfig,
    metrics: RetrievalMetrics | None,
    *,
    num_pictures: int,
    step: int,
    wall_s: float,
) -> str:
    """Markdown for the checkpoint's README.md, with measured figures only."""
    scores = _scores(metrics) if metrics else "Not scored.\n"
    pairs_per_s = step * config.batch_size / max(wall_s, 1e-9)
    values = config.model_dump(mode="json", exclude={"notes"})
    frozen = ", after embedding with the frozen image tower" if config.freeze_image else ""
    settings = yaml.safe_dump(values, sort_keys=False).rstrip()
    notes = f"{config.notes.strip()}\n\n" if config.notes.strip() else ""
    return f"""# {config.name}

A COTS checkpoint: two separate encoders that put pictures and sentences into one space, where a
dot product says how well they match.

{notes}## Training

- Date: {datetime.datetime.now(datetime.UTC).date().isoformat()}
- Objective: instance level (momentum contrast, eq. 4-10)
- Steps: {step:,} of {config.batch_size} pairs
- Data: {num_pictures:,} pictures with captions
- First weights: image `{config.init.image}`, text `{config.init.text}`
- Time: {wall_s / 60:.0f} minutes ({pairs_per_s:.0f} pairs/s){frozen}
- Hardware: {hardware(config.device)}
- Command: `cots train pretrain --config FILE` with the configuration below

## Scores

{scores}
## Configuration

```yaml
{settings}
```
"""


def hardware(device: str = "cpu") -> str:
    """One line: the GPU if it is used, else the processor and its threads."""
    if device != "cpu" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [ln for ln in cpuinfo.read_text().splitlines() if ln.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    threads = torch.get_num_threads()
    return f"{name}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"


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
