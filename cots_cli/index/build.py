"""`cots index build`: a source becomes a gallery."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cots_cli import options
from cots_cli.index import common, reports

if TYPE_CHECKING:
    from cots_model.config import Precision
    from index_builder.manifest import JpegDecoder, Modality, VectorType

_SHARD = re.compile(r"^([0-9]{1,6})/([0-9]{1,6})$")


def _parse_shard(
    _: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    if value is None:
        return None
    match = _SHARD.match(value)
    if match is None or not int(match[1]) < int(match[2]):
        raise click.BadParameter(f"{value!r} is no shard; accepted: 0/n to n-1/n, such as 0/4")
    return int(match[1]), int(match[2])


@click.command(
    name="build",
    epilog="""\b
Examples:
  cots index build photos --gallery galleries/photos
  cots index build 'shards/{00000..00009}.tar' --gallery galleries/web --index auto
  cots index build clips --gallery galleries/clips --modality video --segment-seconds 30
  cots index build images.tar --gallery galleries/shop --metadata items.parquet --json
  cots index build s3://bucket/photos --gallery galleries/bucket
  cots index build dataset.json#val images.tar --gallery galleries/val
  cots index build captions.txt --gallery galleries/words --modality text
Run the same command again after an interruption: finished parts are kept.
""",
)
@click.argument("src", nargs=-1, required=True)
@click.option(
    "--gallery", type=click.Path(path_type=Path), required=True, help="Folder to publish into."
)
@click.option(
    "--modality",
    type=click.Choice(("image", "video", "text")),
    default="image",
    show_default=True,
    help="What the items are.",
)
@click.option(
    "--checkpoint", default="cots-mini", show_default=True, help="Folder, name or hub id."
)
@common.index_options(defaults=True)
@click.option(
    "--segment-seconds",
    type=click.FloatRange(0, min_open=True),
    help="Cut longer videos into segments of this length, each an item.",
)
@click.option(
    "--jpeg-decoder",
    type=click.Choice(("cpu", "gpu")),
    default="cpu",
    show_default=True,
    help="gpu decodes plain JPEGs on the model's GPU; vectors differ in the last digits.",
)
@click.option(
    "--engine",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="Build parts here, or on a Ray cluster that sees the gallery's folder.",
)
@click.option(
    "--shard",
    metavar="I/N",
    callback=_parse_shard,
    help="Build only every N-th part, from the I-th on; join them with `cots index merge`.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@options.precision
@click.option("--batch-size", type=click.IntRange(1, 4096), default=32, show_default=True)
@common.decoding
@click.option(
    "--metadata",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="csv, json, jsonl or parquet with a column `id` (or `filename`).",
)
@common.keep_versions
@click.option("--json", "as_json", is_flag=True, help="Print progress and report as JSON.")
def command(
    src: tuple[str, ...],
    gallery: Path,
    modality: Modality,
    checkpoint: str,
    index: Literal["flat", "hnsw", "ivf", "ivfpq", "cagra", "auto"],
    target_recall: float,
    vectors: VectorType,
    segment_seconds: float | None,
    jpeg_decoder: JpegDecoder,
    engine: Literal["local", "ray"],
    shard: tuple[int, int] | None,
    device: str,
    precision: Precision,
    batch_size: int,
    workers: int,
    part_items: int,
    decode_timeout: float,
    metadata: Path | None,
    keep_versions: int,
    as_json: bool,
) -> None:
    """Index SRC and publish it as a gallery.

    SRC is a folder, tar shards, a manifest (csv, tsv, json, jsonl, parquet) or annotation file with
    the folder or shards of its files behind it, or a url of these; docs/sources.md has them all.
    """
    from cots_model.encoder import Encoder
    from index_builder.build import build_gallery
    from index_builder.indexes.base import IndexRequest
    from index_builder.options import BuildOptions, absolute_sources
    from index_builder.sources.open import open_source

    build = BuildOptions(
        sources=src,
        gallery=gallery,
        modality=modality,
        index=IndexRequest(kind=index, target_recall=target_recall, vectors=vectors, device=device),
        batch_size=batch_size,
        workers=workers,
        metadata=metadata,
        decode_timeout_s=decode_timeout,
        part_items=part_items,
        keep_versions=keep_versions,
        segment_seconds=segment_seconds,
        jpeg_decoder=jpeg_decoder,
        shard=shard,
        engine=engine,
        checkpoint=absolute_sources((checkpoint,))[0] if Path(checkpoint).is_dir() else checkpoint,
        device=device,
    )
    open_source(src, modality=modality)  # a typing error should not wait for the model
    encoder = Encoder.load(checkpoint, device=device, precision=precision)
    with common.progress_on_stderr(modality, as_json=as_json) as progress:
        report = build_gallery(build, encoder, progress=progress)
    reports.print_build(report, as_json=as_json)
