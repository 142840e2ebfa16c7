"""The six rows of the paper's Table 3 with several seeds each: train them, tabulate mean ± sd.

    python benchmarks/table3.py --output runs/table3 --seed 0 --seed 1 --seed 2

Rows are the configurations of training/configs/ablation_mini, all from the checkpoint that `start`
there makes. A run that has ended is not repeated, one that was stopped goes on; the table is
written anew after every run. KEY=VALUE arguments go to every run, also to those of the start.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "training/configs/ablation_mini"
ROWS = {
    "instance": "instance",
    "instance_cmlm": "+ hidden words",
    "instance_token": "+ hidden words and patches",
    "instance_token_task": "+ both, task level",
    "instance_amf": "instance, filter",
    "full": "all, filter",
}
COLUMNS = [f"{way}/r{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Folder of the runs."
)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.argument("overrides", nargs=-1)
def main(output: Path, seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """Train what is missing under OUTPUT and write OUTPUT/table3.md."""
    start = output / "start"
    _train("start", start, [*overrides, "epochs=0"])
    init = [f"init.{side}=checkpoint:{start.resolve()}" for side in ("image", "text")]
    for seed in seeds:  # a whole table of one seed first
        for row in ROWS:
            _train(row, output / f"{row}-{seed}", [*overrides, *init, f"seed={seed}"])
            table = _table(output, seeds)
            (output / "table3.md").write_text(table)
    click.echo(table)


def _train(name: str, folder: Path, overrides: Sequence[str]) -> None:
    """Run `cots train pretrain` unless its checkpoint is already there."""
    done = folder / "done"
    if done.exists():
        return
    config = [f"--config={CONFIGS / name}.yaml", *overrides, f"output={folder}"]
    click.echo(f"== {folder}")
    command = [sys.executable, "-m", "cots_cli.main", "train", "pretrain", *config]
    subprocess.run(command, check=True)
    done.touch()


def _scores(folder: Path) -> dict[str, float] | None:
    """The last scores of a finished run, in percent."""
    if not (folder / "done").exists():
        return None
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return next(record for record in reversed(records) if COLUMNS[0] in record)


def _table(output: Path, seeds: Sequence[int]) -> str:
    """Markdown; a row counts the seeds that have run."""
    lines = [
        "| row | text to image R@1 | R@5 | R@10 | image to text R@1 | R@5 | R@10 | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, name in ROWS.items():
        runs = [scores for seed in seeds if (scores := _scores(output / f"{row}-{seed}"))]
        cells = [_mean([run[column] for run in runs]) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
