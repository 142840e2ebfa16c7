"""`cots index verify`: every checksum of a gallery."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command(name="verify", epilog="\b\nExample:\n  cots index verify galleries/photos\n")
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(gallery: Path, as_json: bool) -> None:
    """Check every file of GALLERY's current version; exit 1 if one is damaged."""
    from tqdm import tqdm

    from cots_model.errors import CotsError
    from index_builder.verify import verify_gallery

    quiet = not (sys.stdout.isatty() and sys.stderr.isatty())
    with tqdm(unit="B", unit_scale=True, disable=quiet, file=sys.stderr, desc="hashed") as bar:
        problems = verify_gallery(gallery, progress=bar.update)
    damaged = {name: problem for name, problem in problems.items() if problem}
    if as_json:
        files = [{"file": name, "problem": problem} for name, problem in problems.items()]
        click.echo(json.dumps({"ok": not damaged, "files": files}))
    elif not damaged:
        click.echo(f"{gallery}: {len(problems)} files are as they were published")
    if damaged:
        faults = "; ".join(f"{name}: {problem}" for name, problem in damaged.items())
        raise CotsError(f"{gallery} is damaged: {faults}; build it again")
