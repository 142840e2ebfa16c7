"""`cots index info`: what a gallery is."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(name="info", epilog="\b\nExample:\n  cots index info galleries/photos --json\n")
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(gallery: Path, as_json: bool) -> None:
    """Print the manifest of GALLERY's current version."""
    from index_builder.gallery import read_manifest

    _, manifest = read_manifest(gallery)
    if as_json:
        click.echo(manifest.model_dump_json())
        return
    for name, value in manifest.model_dump(mode="json").items():
        click.echo(f"{name:18} {value if not isinstance(value, dict) else json.dumps(value)}")
