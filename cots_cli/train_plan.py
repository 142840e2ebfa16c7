"""`cots train plan`: what a run needs."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import click


@click.command(
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
