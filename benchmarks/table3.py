"""The six rows of the paper's Table 3, and one more, with several seeds: mean ± sd of each.

    python benchmarks/table3.py --output runs/table3 --seed 0 --seed 1 --seed 2

Rows are the configurations of training/configs/ablation_mini, all from the checkpoint that `start`
there makes. A run that has ended is not repeated, one that was stopped goes on; the table is
written anew after every run. KEY=VALUE arguments go to every run, also to those of the start.
`--jobs 4` has four runs share the machine, each with a log of its own.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
    "full_light_task": "all, filter, task level at 0.1",  # not in the paper
}
COLUMNS = [f"{way}/r{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Folder of the runs."
)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option(
    "--start",
    "given",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Checkpoint that all rows start from, instead of making one.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at once.")
@click.argument("overrides", nargs=-1)
def main(
    output: Path, seeds: Sequence[int], given: Path | None, jobs: int, overrides: Sequence[str]
) -> None:
    """Train what is missing under OUTPUT and write OUTPUT/table3.md."""
    start = given or output / "start"
    alone = ["epochs=0", "data.resident_side=null"]  # its image tower is frozen
    if given is None and not _trained("start", start, [*overrides, *alone]):
        raise click.ClickException("all rows need the start, and it failed")
    made = start / "config.json"  # it has the start's fingerprint
    begun = made.read_text() if made.exists() else ""
    init = [f"init.{side}=checkpoint:{start.resolve()}" for side in ("image", "text")]
    failed = []

    def run(seed_and_row: tuple[int, str]) -> None:
        seed, row = seed_and_row
        folder = output / f"{row}-{seed}"
        if not _trained(row, folder, [*overrides, *init, f"seed={seed}"], begun, own_log=jobs > 1):
            failed.append(folder.name)
        (output / "table3.md").write_text(_table(output, seeds))

    with ThreadPoolExecutor(jobs) as pool:  # a whole table of one seed first
        list(pool.map(run, ((seed, row) for seed in seeds for row in ROWS)))
    (output / "table3.md").write_text(_table(output, seeds))
    click.echo((output / "table3.md").read_text())
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}; run this again for these")


def _trained(
    name: str, folder: Path, overrides: Sequence[str], begun: str = "", *, own_log: bool = False
) -> bool:
    """Run `cots train pretrain` unless that has ended before; whether it succeeded.

    Args:
        name: of the row's configuration.
        folder: of the run.
        overrides: KEY=VALUE.
        begun: what tells its start from others at the same place.
        own_log: what the run says goes into `FOLDER.log`, not to the terminal.
    """
    config, done = CONFIGS / f"{name}.yaml", folder / "done"
    asked = "\n".join(
        [config.read_text(), (CONFIGS / "instance.yaml").read_text(), *overrides, begun]
    )
    if done.exists():
        if done.read_text() != asked:
            raise click.ClickException(
                f"{folder} was trained as another configuration or with other KEY=VALUE; "
                "remove it, or give another --output"
            )
        return True
    click.echo(f"== {folder}")
    command = [sys.executable, "-m", "cots_cli.main", "train", "pretrain", f"--config={config}"]
    command += [*overrides, f"output={folder}"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") if own_log else contextlib.nullcontext() as log:
        if subprocess.run(command, check=False, stdout=log, stderr=log).returncode:
            return False
    shutil.rmtree(folder / "states", ignore_errors=True)
    done.write_text(asked)
    return True


def _scores(folder: Path) -> dict[str, float] | None:
    """The last scores of a finished run, in percent."""
    if not (folder / "done").exists():
        return None
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return next((record for record in reversed(records) if COLUMNS[0] in record), None)


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
