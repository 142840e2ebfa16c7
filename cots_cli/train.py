"""`cots train`: make checkpoints."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    from training.evaluate import format_metrics

    if as_json:
        fields = {
            "checkpoint": str(result.checkpoint),
            "fingerprint": result.fingerprint,
            "seconds": round(result.wall_s, 1),
            "metrics": None if result.metrics is None else asdict(result.metrics),
        }
        click.echo(json.dumps(fields, ensure_ascii=False))
        return
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


@command.command(
    short_help="Memory and time of a run, before it is started.",
    epilog="""\b
Examples:
  cots train plan --config training/configs/pretrain_cc4m.yaml --pairs 4000000 --gpus 8
  cots train plan --config my.yaml batch_size=256 --pairs 1e6 --gpu A100 --json""",
)
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(path_type=Path),
    help="YAML file of a run.",
)
@click.option(
    "--pairs",
    type=click.FloatRange(1, 1e12),
    required=True,
    help="Pictures of an epoch; 4e6 is four million.",
)
@click.option("--gpu", default="H100", show_default=True, help="A100, H100, H200 or L40S.")
@click.option("--gpus", type=click.IntRange(1), default=8, show_default=True)
@click.option(
    "--mfu",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.4,
    show_default=True,
    help="Share of the GPU's peak that is reached: a guess, until `speed/mfu` of a run's log says.",
)
@click.option(
    "--tokens",
    type=click.IntRange(3),
    default=16,
    show_default=True,
    help="Length of a batch's longest caption.",
)
@click.option(
    "--frames",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Pictures of each pair: for videos as many as `data.num_frames`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def plan(
    config_path: Path,
    pairs: float,
    gpu: str,
    gpus: int,
    mfu: float,
    tokens: int,
    frames: int,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Count what a run needs, on this machine's CPU; neither data nor first weights are read.

    Memory is what the tensors of two small steps take, for `batch_size` pairs; what a GPU's
    libraries take on top is not in it. Time is the operations of all epochs at the given share of
    the peak that NVIDIA's data sheet gives.
    """
    from cots_model.errors import InputError
    from training.config import load_train_config
    from training.engine.speed import peak_of
    from training.plan import make_plan

    config, peak = load_train_config(config_path, overrides), peak_of(gpu)
    if peak is None:
        raise InputError(f"the peak of GPU {gpu!r} is not known; use A100, H100, H200 or L40S")
    click.echo("counting two small steps; two to four minutes for the paper's model", err=True)
    found = make_plan(config, num_tokens=tokens, num_frames=frames)
    seconds = found.seconds(round(pairs * config.epochs), peak=peak, devices=gpus, mfu=mfu)
    size = config.batch_size
    figures = {
        "gib": round(found.memory_bytes(size) / 2**30, 3),
        "gib_twice_the_batch": round(found.memory_bytes(2 * size) / 2**30, 3),
        "gflops_per_pair": round(found.pair_flops.total / 1e9, 2),
        "pairs_per_s": round(pairs * config.epochs / seconds, 1),
        "hours": round(seconds / 3600, 4),
    }
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(
        f"memory of each process, {frames} frame{'s' * (frames > 1)} and {tokens} tokens a pair: "
        f"{figures['gib']} GiB with batch_size {size}, "
        f"{figures['gib_twice_the_batch']} GiB with {2 * size}"
    )
    click.echo(
        f"time: {timedelta(seconds=round(seconds))} for {config.epochs} epochs of {pairs:,.0f} "
        f"pairs on {gpus} {gpu} ({figures['gflops_per_pair']} GFLOP a pair, "
        f"{figures['pairs_per_s']:,} pairs/s at MFU {mfu})"
    )
