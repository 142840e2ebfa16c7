"""`cots bench`: figures of this machine, with what they were measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cots_cli.bench_report import Report

_OUT = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for a JSON file, named by date and benchmark.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")


@click.group(
    name="bench",
    epilog="""\b
Examples:
  cots bench query
  cots bench train --help
""",
)
def command() -> None:
    """Measure speed on this machine."""


@command.command(
    name="query",
    epilog="""\b
Examples:
  cots bench query
  cots bench query --items 1000000 --runs 200 --json
  cots bench query --out benchmarks/results
""",
)
@click.option(
    "--checkpoint", default="cots-mini", show_default=True, help="Folder, name or hub id."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--items",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Random unit vectors in the exact index searched.",
)
@click.option("-k", "k", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--runs", type=click.IntRange(3), default=50, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
@_OUT
@_JSON
def query(
    checkpoint: str,
    device: str,
    items: int,
    k: int,
    runs: int,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """One query at a time: embed a sentence, embed a picture, search an exact index."""
    from cots_cli.bench_query import measure_query
    from cots_model.encoder import Encoder

    encoder = Encoder.load(checkpoint, device=device)
    report = measure_query(encoder, items=items, k=k, runs=runs, threads=threads)
    _show(report, out, as_json)


@command.command(
    name="train",
    epilog="""\b
Examples:
  cots bench train --config training/configs/pretrain_mini.yaml
  cots bench train --config my.yaml objective.task.weight=0 batch_size=32 --runs 20 --json

'encoders alone' is a forward and a backward pass of the two encoders with the same batch; the lines
below it are the parts of a step. step_ms is the mean of steps without a pause between them, with
loading_ms of it spent on waiting for the batch. Nothing is written to the run's output.
""",
)
@click.argument("overrides", nargs=-1)
@click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="YAML file of a run.",
)
@click.option("--runs", type=click.IntRange(1), default=10, show_default=True, help="Steps.")
@_OUT
@_JSON
def train(
    overrides: tuple[str, ...], path: Path, runs: int, out: Path | None, as_json: bool
) -> None:
    """A training step, and its encoders alone."""
    from cots_cli.bench_train import measure_training
    from training.config import load_train_config

    report = measure_training(load_train_config(path, overrides), runs=runs)
    _show(report, out, as_json)


def _show(report: Report, out: Path | None, as_json: bool) -> None:
    from cots_cli.bench_report import write_report

    if out is not None:
        click.echo(f"written to {write_report(report, out)}", err=True)
    if as_json:
        click.echo(json.dumps(report.as_json(), ensure_ascii=False))
        return
    click.echo(f"{report.model}, {report.hardware.summary()}, {report.date}")
    for stage in report.stages:
        click.echo(
            f"{stage.name:16} median {stage.median_ms:9.2f} ms   "
            f"p95 {stage.p95_ms:9.2f} ms   ({stage.runs} runs)"
        )
    for name, value in report.figures.items():
        click.echo(f"{name}: {value}")
