"""`cots explain`: where in a picture a text is, and which of its words counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cots_cli.relevance_page import Explained


@click.command(
    name="explain",
    epilog="""\b
Examples:
  cots explain photo.jpg "a dog" "snow" --output maps.png
  cots explain photo.jpg "a dog runs through snow" --output maps.png --start-layer 4 --json
""",
)
@click.argument("picture", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="PNG: the picture with a map for each text.",
)
@click.option(
    "--start-layer",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="First layer of the image tower that counts.",
)
@click.option(
    "--text-start-layer",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="First layer of the text tower that counts.",
)
@click.option(
    "--checkpoint", default="cots-mini", show_default=True, help="Folder, name or hub id."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print similarities, words and maps as JSON.")
def command(
    picture: Path,
    texts: tuple[str, ...],
    output: Path,
    start_layer: int,
    text_start_layer: int,
    checkpoint: str,
    device: str,
    as_json: bool,
) -> None:
    """Map the similarity of PICTURE and each of TEXTS back to patches and words (GAE)."""
    from cots_cli.relevance_page import Explainer, draw
    from cots_model.errors import InputError
    from cots_model.images import decode_image

    if output.suffix.lower() != ".png":
        raise InputError(f"{output}: maps are written as PNG; give a name that ends in .png")
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent}; make it, or write elsewhere")
    if empty := [text for text in texts if not text.strip()]:
        raise InputError(f"{len(empty)} of the texts are empty; say what to look for")
    img = decode_image(picture)
    explainer = Explainer.load(checkpoint, device=device)
    layers = {"start_layer": start_layer, "text_start_layer": text_start_layer}
    found = [explainer(img, text, **layers) for text in texts]
    draw(explainer.base(img), found).save(output)
    if as_json:
        click.echo(json.dumps([_as_json(one) for one in found], ensure_ascii=False))
        return
    for one in found:
        words = ", ".join(f"{word} {share:.0%}" for word, share in one.words)
        click.echo(f"{one.similarity:.3f}  {one.text}  ({words})")
    click.echo(f"maps in {output}")


def _as_json(one: Explained) -> dict[str, object]:
    return {
        "text": one.text,
        "similarity": one.similarity,
        "words": [{"word": word, "share": share} for word, share in one.words],
        "patches": one.patch_hw.tolist(),
    }
