"""`cots index versions`: which versions a gallery keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cots_cli.index import common

if TYPE_CHECKING:
    from index_builder.rollback import VersionSummary


@click.command(
    name="versions", epilog="\b\nExample:\n  cots index versions galleries/photos --json\n"
)
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the versions as JSON.")
def command(gallery: Path, as_json: bool) -> None:
    """List the versions that GALLERY keeps, the newest first; `*` is the current one.

    `cots index rollback` goes back to one of them.
    """
    from dataclasses import asdict

    from index_builder.report import counted
    from index_builder.rollback import list_versions

    versions = list_versions(gallery)
    if as_json:
        listed = [asdict(version) for version in versions]
        click.echo(json.dumps({"gallery": str(gallery), "versions": listed}, ensure_ascii=False))
        return
    click.echo(f"{gallery}: {counted(len(versions), 'version')}")
    rows = [_row(version) for version in versions]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _row(version: VersionSummary) -> tuple[str, ...]:
    from index_builder.report import NOUNS, counted

    items = created = index = model = ""
    if version.count is not None and version.modality is not None:
        items = counted(version.count, *NOUNS[version.modality])
        created, index, model = version.created or "", version.index or "", version.model_name or ""
    size = common.megabytes(version.size_bytes)
    notes = ["rolled back from"] if version.withdrawn else []
    notes += [f"damaged: {version.problem}"] if version.problem else []
    mark = "*" if version.current else " "
    return mark, version.version, created, items, model, index, size, "; ".join(notes)
