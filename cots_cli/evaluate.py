"""`cots evaluate`: how well a checkpoint retrieves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cots_cli import options

if TYPE_CHECKING:
    from cots_model.config import Precision
    from cots_model.encoder import Encoder


@click.command(
    name="evaluate",
    short_help="Score a checkpoint: R@1/5/10 both ways.",
    epilog="""\b
Examples:
  cots evaluate --data val-00000.tar
  cots evaluate --data 'shards/{00000..00004}.tar' --checkpoint runs/mine --json
  cots evaluate --data dataset_coco.json --image-root coco/ --split test
  cots evaluate --data val-00000.tar --checkpoint runs/a --ensemble runs/b
  cots evaluate --data val-00000.tar --cutoffs
  cots evaluate --data '{path: MSRVTT_JSFUSION_test.csv, image_root: videos/}'""",
)
@click.option(
    "--data",
    "sources",
    required=True,
    multiple=True,
    help="Pictures or videos with captions: a folder, tar shards, an annotation file in any format "
    "of docs/training.md, or a mapping '{path: ..., image_root: ..., ...}'. May be repeated.",
)
@click.option(
    "--checkpoint", default="cots-mini", show_default=True, help="Folder, name or hub id."
)
@click.option(
    "--ensemble",
    "others",
    multiple=True,
    help="Another checkpoint whose scores are averaged with the first one's. May be repeated.",
)
@click.option(
    "--image-root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where the pictures lie that an annotation file names.",
)
@click.option("--split", help="Split of a Karpathy or MSR-VTT json: train, val or test.")
@click.option(
    "--max-broken",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of pictures that may be left out because they cannot be read.",
)
@click.option(
    "--share-texts",
    is_flag=True,
    help="Ask a text that several pictures have once; each of them is right (for keywords).",
)
@click.option(
    "--cutoffs",
    is_flag=True,
    help="Print which min_score of a search (or share of its best score) keeps 99, 95, 90, 80, 70 "
    "and 50 % of the right pictures, and how many of the others.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@options.precision
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    sources: tuple[str, ...],
    checkpoint: str,
    others: tuple[str, ...],
    image_root: Path | None,
    split: str | None,
    max_broken: float,
    share_texts: bool,
    cutoffs: bool,
    device: str,
    precision: Precision,
    batch_size: int,
    as_json: bool,
) -> None:
    """Score a checkpoint on pictures or videos with captions.

    Prints R@1, R@5, R@10 in percent and the median rank, text to image and image to text. Pictures
    may have any number of captions.
    """
    import json
    from dataclasses import asdict

    from training.data import read_examples
    from training.evaluate import embed, format_cutoffs, format_metrics

    examples = read_examples(sources, image_root=image_root, split=split)
    embedded = embed(
        _load((checkpoint, *others), device, precision),
        examples,
        batch_size=batch_size,
        max_broken_share=max_broken,
        share_texts=share_texts,
    )
    metrics = embedded.metrics()
    if as_json:
        more = {"cutoffs": asdict(embedded.cutoffs())} if cutoffs else {}
        click.echo(json.dumps(asdict(metrics) | more))
        return
    click.echo(format_metrics(metrics))
    if cutoffs:
        click.echo(f"\n{format_cutoffs(embedded.cutoffs())}")


def _load(checkpoints: tuple[str, ...], device: str, precision: Precision) -> Encoder:
    from cots_model.encoder import Encoder
    from cots_model.ensemble import EnsembleEncoder

    encoders = [
        Encoder.load(checkpoint, device=device, precision=precision) for checkpoint in checkpoints
    ]
    return EnsembleEncoder(encoders) if len(encoders) > 1 else encoders[0]
