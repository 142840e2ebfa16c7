"""`cots ensemble`: several checkpoints as one."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    name="ensemble",
    short_help="Make one checkpoint of several that score together.",
    epilog="""\b
Examples:
  cots ensemble runs/a runs/b --output runs/both
  cots index build photos --gallery galleries/photos --checkpoint runs/both""",
)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT CHECKPOINT...")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="New folder; every command takes it as a --checkpoint.",
)
@click.option("--name", help="Shown to users; the members' joined by + by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(checkpoints: tuple[str, ...], output: Path, name: str | None, as_json: bool) -> None:
    """Copy CHECKPOINTs into a folder whose score is the mean of theirs.

    Each is a folder, a name or a hub id; they may differ in size, tokenizer and preprocessing. A
    picture and a sentence take as long as with all of them, one after the other, and a gallery's
    vectors are as wide as theirs together. The order counts: a gallery belongs to one.
    """
    import json

    from cots_model.ensemble import write_ensemble

    fingerprint = write_ensemble(checkpoints, output, name=name)
    if as_json:
        click.echo(json.dumps({"checkpoint": str(output), "fingerprint": fingerprint}))
    else:
        click.echo(f"{output}: {fingerprint[:16]}, {len(checkpoints)} checkpoints")
