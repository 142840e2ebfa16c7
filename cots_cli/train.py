"""`cots train`: make checkpoints."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cots_cli.train_plan import plan

if TYPE_CHECKING:
    from training.trainer import TrainResult


_TOLD = (
    "training.engine",
    "training.feature_cache",
    "training.tokenizer_report",
    "training.train_tokenizer",
)
"""Loggers that say how far a run is."""


@click.group(
    name="train",
    short_help="Train checkpoints.",
    epilog="""\b
Examples:
  cots train pretrain --config training/configs/cots_mini/pretrain.yaml
  cots train pretrain --help
""",
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Train checkpoints."""
    chosen = ctx.find_root().get_parameter_source("log_level")
    silent = chosen is click.core.ParameterSource.DEFAULT  # for hours, that would look like a hang
    tells = silent and os.environ.get("RANK", "0") == "0"  # of several processes the first
    for name in _TOLD:
        logging.getLogger(name).setLevel(logging.INFO if tells else logging.NOTSET)


_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def _run_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options of every training on pairs."""
    for decorate in (
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
        _AS_JSON,
        click.option(
            "--report-limit",
            type=click.IntRange(1),
            default=200,
            show_default=True,
            help="Pairs on that page, the newest.",
        ),
        click.option(
            "--report-filtered",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE.html",
            help="Show the pairs that the momentum filter dropped on this page, anew after every "
            "epoch.",
        ),
        click.option(
            "--config",
            "config_path",
            required=True,
            type=click.Path(path_type=Path),
            help="YAML file; training/configs holds examples.",
        ),
    ):
        function = decorate(function)
    return function


@command.command(
    short_help="Train on pairs of pictures and captions.",
    epilog="""\b
Examples:
  cots train pretrain --config training/configs/cots_mini/pretrain.yaml
  cots train pretrain --config my.yaml epochs=3 optimiser.lr=1e-4 output=runs/try
  cots train pretrain --config my.yaml --report-filtered dropped.html""",
)
@_run_options
def pretrain(
    config_path: Path,
    report_filtered: Path | None,
    report_limit: int,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train with the losses that the file switches on (eq. 1-15).

    KEY=VALUE changes single keys of the file. The checkpoint, its model card and a log go to the
    folder that `output` names; the checkpoint is written anew after every epoch. A run that was
    stopped goes on where it was.
    """
    _train(config_path, report_filtered, report_limit, overrides, as_json=as_json)


@command.command(
    short_help="Train a checkpoint further, on the pairs of a task.",
    epilog="""\b
Examples:
  cots train finetune --config training/configs/finetune_flickr30k.yaml
  cots train finetune --config my.yaml init.image=checkpoint:runs/a init.text=checkpoint:runs/a""",
)
@_run_options
def finetune(
    config_path: Path,
    report_filtered: Path | None,
    report_limit: int,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train a checkpoint further: as `pretrain`, from the checkpoint that `init` names."""
    _train(
        config_path,
        report_filtered,
        report_limit,
        overrides,
        as_json=as_json,
        starts_from_checkpoint=True,
    )


def _train(
    config_path: Path,
    report_filtered: Path | None,
    report_limit: int,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
    starts_from_checkpoint: bool = False,
) -> None:
    from cots_model.errors import ConfigError
    from training.config import load_train_config
    from training.engine.dropped import FilterReport
    from training.trainer import train

    config = load_train_config(config_path, overrides)
    sources = (config.init.image, config.init.text)
    if starts_from_checkpoint and not all(s.startswith("checkpoint:") for s in sources):
        raise ConfigError(
            f"fine-tuning starts from a checkpoint, and init names {sources[0]!r} and "
            f"{sources[1]!r}; give init.image=checkpoint:FOLDER and init.text=checkpoint:FOLDER, "
            "or take `cots train pretrain`"
        )
    report = FilterReport(report_filtered, report_limit) if report_filtered else None
    result = train(config, report=report)
    if not result.is_main:
        return
    _print_result(result, as_json=as_json)
    if report_filtered:
        click.echo(f"{report_filtered}: pairs that the filter dropped", err=as_json)


def _print_result(result: TrainResult, *, as_json: bool) -> None:
    if as_json:
        fields = {
            "checkpoint": str(result.checkpoint),
            "fingerprint": result.fingerprint,
            "seconds": round(result.wall_s, 3),
            "metrics": None if result.metrics is None else asdict(result.metrics),
        }
        click.echo(json.dumps(fields, ensure_ascii=False))
        return
    from training.evaluate import format_metrics

    click.echo(f"{result.checkpoint}: {result.fingerprint[:16]}, {result.wall_s:.0f} s")
    if result.metrics:
        click.echo(format_metrics(result.metrics))


@command.command(
    short_help="Train an image tokenizer on pictures.",
    epilog="""\b
Examples:
  cots train tokenizer --config training/configs/tokenizer_mini.yaml
  cots train tokenizer --config my.yaml model.vocab_size=512 epochs=3 output=runs/tokens""",
)
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(path_type=Path),
    help="YAML file; training/configs/tokenizer_mini.yaml is an example.",
)
@_AS_JSON
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def tokenizer(config_path: Path, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Train a small discrete VAE, whose codes masked patches must name in pre-training (eq. 1).

    KEY=VALUE changes single keys of the file. The tokenizer, a log and a picture of
    reconstructions go to the folder that `output` names, anew after every epoch. A run that was
    stopped goes on where it was. A codebook that collapses ends the run with status 1.
    """
    from training.tokenizer_config import load_tokenizer_config
    from training.train_tokenizer import train_tokenizer

    result = train_tokenizer(load_tokenizer_config(config_path, overrides))
    last = result.last
    if as_json:
        fields = {
            "tokenizer": str(result.folder),
            "fingerprint": result.fingerprint,
            "reconstruction": last.reconstruction,
            "perplexity": last.perplexity,
            "usage": last.usage,
        }
        click.echo(json.dumps(fields, ensure_ascii=False))
        return
    click.echo(f"{result.folder}: {result.fingerprint[:16]}")
    click.echo(
        f"reconstruction {last.reconstruction:.5f}, perplexity {last.perplexity:.1f}, "
        f"{last.usage:.1%} of the codes used"
    )


command.add_command(plan)
