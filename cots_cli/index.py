"""`cots index`: build a gallery, look at it, check it."""

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


@click.group(name="index")
def command() -> None:
    """Build galleries and check them."""


def _only_known(_: click.Context, option: click.Parameter, value: str) -> str:
    accepted = _LATER[str(option.name)]
    if value not in accepted:
        raise click.BadParameter(
            f"{value!r} is not available in this version; accepted now: {', '.join(accepted)}"
        )
    return value


@command.command(
    epilog="""\b
Examples:
  cots index build photos --gallery galleries/photos
  cots index build 'shards/{00000..00009}.tar' --gallery galleries/web
  cots index build images.tar --gallery galleries/shop --metadata items.parquet --json
"""
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
def build(
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
    from index_builder.open_source import open_source
    from index_builder.options import BuildOptions

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


@command.command(epilog="\b\nExample:\n  cots index info galleries/photos --json\n")
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def info(gallery: Path, as_json: bool) -> None:
    """Print the manifest of GALLERY's current version."""
    from index_builder.gallery import read_manifest

    _, manifest = read_manifest(gallery)
    if as_json:
        click.echo(manifest.model_dump_json())
        return
    for name, value in manifest.model_dump(mode="json").items():
        click.echo(f"{name:18} {value if not isinstance(value, dict) else json.dumps(value)}")


@command.command(epilog="\b\nExample:\n  cots index verify galleries/photos\n")
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(gallery: Path, as_json: bool) -> None:
    """Check every file of GALLERY's current version; exit 1 if one is damaged."""
    from cots_model.errors import CotsError
    from index_builder.verify import verify_gallery

    problems = verify_gallery(gallery)
    damaged = {name: problem for name, problem in problems.items() if problem}
    if as_json:
        files = [{"file": name, "problem": problem} for name, problem in problems.items()]
        click.echo(json.dumps({"ok": not damaged, "files": files}))
    elif not damaged:
        click.echo(f"{gallery}: {len(problems)} files are as they were published")
    if damaged:
        faults = "; ".join(f"{name}: {problem}" for name, problem in damaged.items())
        raise CotsError(f"{gallery} is damaged: {faults}; build it again")
