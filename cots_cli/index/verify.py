"""`cots index verify`: every checksum of a gallery."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cots_cli.index import common


@click.command(name="verify", epilog="\b\nExample:\n  cots index verify galleries/photos\n")
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(gallery: Path, as_json: bool) -> None:
    """Check every file of GALLERY's current version; exit 1 if one is damaged."""
    from cots_model.errors import CotsError
    from index_builder.report import counted
    from index_builder.verify import verify_gallery

    with common.bytes_on_stderr("hashed") as advance:
        problems = verify_gallery(gallery, progress=advance)
    damaged = {name: problem for name, problem in problems.items() if problem}
    if as_json:
        files = [{"file": name, "problem": problem} for name, problem in problems.items()]
        click.echo(json.dumps({"ok": not damaged, "files": files}))
    elif not damaged:
        files_are = counted(len(problems), "file is as it was", "files are as they were")
        click.echo(f"{gallery}: {files_are} published")
    if damaged:
        faults = "; ".join(f"{name}: {problem}" for name, problem in damaged.items())
        raise CotsError(
            f"{gallery} is damaged: {faults}; build it again, or go back to the version before "
            "with `cots index rollback`"
        )
