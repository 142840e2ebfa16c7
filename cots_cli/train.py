"""`cots train`: make checkpoints."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(name="train", short_help="Train checkpoints.")
def command() -> None:
    """Train checkpoints."""


@command.command(
    short_help="Train on pairs of pictures and captions.",
    epilog="""\b
Examples:
  cots train pretrain --config training/configs/cots-mini.yaml
  cots train pretrain --config my.yaml epochs=3 optimiser.lr=1e-4 output=runs/try""",
)
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(path_type=Path),
    help="YAML file; training/configs holds examples.",
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def pretrain(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Train from first weights with the instance-level objective (eq. 4-10).

    KEY=VALUE changes single keys of the file. The checkpoint, its model card and a log go to the
    folder that `output` names; the checkpoint is written anew after every epoch.
    """
    from training.config import load_train_config
    from training.evaluate import format_metrics
    from training.trainer import train

    result = train(load_train_config(config_path, overrides))
    click.echo(f"{result.checkpoint}: {result.fingerprint[:16]}, {result.wall_s:.0f} s")
    if result.metrics:
        click.echo(format_metrics(result.metrics))
