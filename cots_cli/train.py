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
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def tokenizer(config_path: Path, overrides: tuple[str, ...]) -> None:
    """Train a small discrete VAE, whose codes masked patches must name in pre-training (eq. 1).

    KEY=VALUE changes single keys of the file. The tokenizer, a log and a picture of
    reconstructions go to the folder that `output` names, anew after every epoch. A codebook that
    collapses ends the run with status 1.
    """
    from training.tokenizer_config import load_tokenizer_config
    from training.train_tokenizer import train_tokenizer

    result = train_tokenizer(load_tokenizer_config(config_path, overrides))
    last = result.last
    click.echo(f"{result.folder}: {result.fingerprint[:16]}")
    click.echo(
        f"reconstruction {last.reconstruction:.5f}, perplexity {last.perplexity:.1f}, "
        f"{last.usage:.1%} of the codes used"
    )
