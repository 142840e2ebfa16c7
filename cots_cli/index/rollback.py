"""`cots index rollback`: a gallery goes back to a version that it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cots_cli.index import common


@click.command(
    name="rollback",
    epilog="""\b
Examples:
  cots index rollback galleries/photos
  cots index rollback galleries/photos --to 20260131T120000.000000Z --verify
`cots index versions galleries/photos` lists what it can go back to.
""",
)
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option("--to", metavar="VERSION", help="A version it keeps.  [the one before the current]")
@click.option("--verify", is_flag=True, help="Hash all its files first, not only look at sizes.")
@click.option("--other-model", is_flag=True, help="Also to a version of another model.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(gallery: Path, to: str | None, verify: bool, other_model: bool, as_json: bool) -> None:
    """Publish a version of GALLERY again, as it was; a later one is the way forward again.

    Servers take it as they take a new version. The versions left behind go with the next one that
    is published, as far as --keep-versions does not keep them.
    """
    from dataclasses import asdict

    from index_builder.report import NOUNS, counted
    from index_builder.rollback import roll_back

    with common.bytes_on_stderr("hashed") as advance:
        report = roll_back(gallery, to=to, verify=verify, other_model=other_model, progress=advance)
    if as_json:
        click.echo(json.dumps(asdict(report), ensure_ascii=False))
        return
    held = counted(report.count, *NOUNS[report.modality])
    if report.version == report.previous_version:
        click.echo(f"{gallery}: nothing to do, version {report.version} is current ({held})")
    else:
        click.echo(
            f"{gallery}: back to version {report.version} ({held}), from {report.previous_version}"
        )
