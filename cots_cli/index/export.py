"""`cots index export`: a gallery moves to Milvus."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cots_cli.progress import is_quiet

if TYPE_CHECKING:
    from index_builder.milvus.options import IndexType


@click.command(
    name="export",
    epilog="""\b
Examples:
  cots index export galleries/photos --to milvus://localhost:19530/photos --gallery served/photos
  cots index export galleries/photos --to milvus:///srv/lite.db/photos --gallery served/photos
""",
)
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "url",
    required=True,
    help="milvus://HOST:PORT/[DATABASE/]COLLECTION, milvuss:// over TLS, or "
    "milvus:///PATH.db/COLLECTION. The token is read from COTS_MILVUS_TOKEN.",
)
@click.option(
    "--gallery",
    "target",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the new gallery, which names the collection.",
)
@click.option(
    "--index",
    type=click.Choice(["flat", "hnsw", "ivf_flat"]),
    default="flat",
    show_default=True,
    help="flat is exact.",
)
@click.option("--replace", is_flag=True, help="Drop a collection of that name first.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    gallery: Path, url: str, target: Path, index: IndexType, replace: bool, as_json: bool
) -> None:
    """Write GALLERY's vectors and items to a Milvus collection and publish a gallery of it."""
    from dataclasses import asdict

    from tqdm import tqdm

    from index_builder.gallery import read_manifest
    from index_builder.milvus.export import export_gallery
    from index_builder.milvus.options import ExportOptions
    from index_builder.report import counted

    options = ExportOptions(gallery=gallery, to=url, target=target, index=index, replace=replace)
    total = 3 * read_manifest(gallery)[1].count  # hashed, written, read back
    with tqdm(total=total, unit=" rows", disable=is_quiet(), file=sys.stderr) as bar:
        report = export_gallery(options, progress=bar.update)
    if as_json:
        click.echo(json.dumps(asdict(report), ensure_ascii=False))
        return
    click.echo(
        f"{report.collection}: {counted(report.count, 'item')}, {report.written:,} written now, "
        f"all read back; {report.seconds:.1f} s"
    )
    click.echo(f"{report.gallery}: version {report.version} names it")
