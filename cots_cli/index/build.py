"""`cots index build`: a source becomes a gallery."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cots_cli import options

if TYPE_CHECKING:
    from cots_model.config import Precision
    from index_builder.options import BuildReport

_LATER = {"modality": ("image",), "index": ("flat",), "engine": ("local",)}


def _only_known(_: click.Context, option: click.Parameter, value: str) -> str:
    accepted = _LATER[str(option.name)]
    if value not in accepted:
        raise click.BadParameter(
            f"{value!r} is not available in this version; accepted now: {', '.join(accepted)}"
        )
    return value


@click.command(
    name="build",
    epilog="""\b
Examples:
  cots index build photos --gallery galleries/photos
  cots index build 'shards/{00000..00009}.tar' --gallery galleries/web
  cots index build images.tar --gallery galleries/shop --metadata items.parquet --json
""",
)
@click.argument("src", nargs=-1, required=True)
@click.option(
    "--gallery", type=click.Path(path_type=Path), required=True, help="Folder to publish into."
)
@click.option("--modality", default="image", callback=_only_known, help="Now: image.")
@click.option(
    "--checkpoint", default="cots-mini", show_default=True, help="Folder, name or hub id."
)
@click.option("--index", default="flat", callback=_only_known, help="Now: flat (exact).")
@click.option("--engine", default="local", callback=_only_known, hidden=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@options.precision
@click.option("--batch-size", type=click.IntRange(1, 4096), default=32, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(0, 256),
    default=0,
    help="Decoding processes; 0: one per core, at most 8.",
)
@click.option(
    "--metadata",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="csv, json, jsonl or parquet with a column `id` (or `filename`).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    src: tuple[str, ...],
    gallery: Path,
    modality: str,
    checkpoint: str,
    index: str,
    engine: str,
    device: str,
    precision: Precision,
    batch_size: int,
    workers: int,
    metadata: Path | None,
    as_json: bool,
) -> None:
    """Index SRC, a folder of pictures or tar shards, and publish it as a gallery."""
    from tqdm import tqdm

    from cots_model.encoder import Encoder
    from index_builder.build import build_gallery
    from index_builder.options import BuildOptions
    from index_builder.sources.open import open_source

    options = BuildOptions(
        sources=src, gallery=gallery, batch_size=batch_size, workers=workers, metadata=metadata
    )
    open_source(src)  # a typing error should not wait for the model
    encoder = Encoder.load(checkpoint, device=device, precision=precision)
    quiet = not (sys.stdout.isatty() and sys.stderr.isatty())
    with tqdm(unit=" pictures", disable=quiet, file=sys.stderr) as bar:
        report = build_gallery(options, encoder, progress=bar.update)
    _print_report(report, as_json=as_json)


def _print_report(report: BuildReport, *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        click.echo(json.dumps(asdict(report), ensure_ascii=False))
        return
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items())
    click.echo(f"{report.gallery}: {report.count:,} pictures indexed, version {report.version}")
    click.echo(f"seconds: {stages}; {report.images_per_s:.1f} images/s")
    if report.skipped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.skipped.items())
        click.echo(f"skipped: {reasons}; listed in {report.skipped_file}")
    if report.ignored:
        click.echo(f"ignored: {report.ignored:,} files that are no pictures, or hidden")
    if report.bad_sidecars:
        click.echo(
            f"unusable sidecars: {report.bad_sidecars:,}; the first: {report.first_bad_sidecar}",
            err=True,
        )
    if report.metadata_rows:
        matched, rows = report.metadata_matched, report.metadata_rows
        line = f"metadata: {matched:,} items matched one of {rows:,} rows"
        click.echo(line, err=not report.metadata_matched)
