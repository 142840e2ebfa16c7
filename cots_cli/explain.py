"""`cots explain`: where in a picture a text is, and which of its words counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cots_cli.progress import is_quiet, steps

if TYPE_CHECKING:
    from cots_cli.relevance_page import Tile
    from cots_model.explainer import Explained, WordsExplained


@click.command(
    name="explain",
    epilog="""\b
Examples:
  cots explain --image photo.jpg "a dog runs through snow" --out maps.png
  cots explain --image photo.jpg "a dog" "snow" --out maps.png --whole
  cots explain --image photo.jpg "a dog in snow" --out maps.png --start-layer 4 --json
""",
)
@click.argument("texts", nargs=-1, required=True)
@click.option("--image", "picture", type=click.Path(path_type=Path), required=True)
@click.option(
    "--out",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="PNG: the picture with a map for each text and each word.",
)
@click.option("--whole", is_flag=True, help="A map for each text as a whole, none for its words.")
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
    texts: tuple[str, ...],
    picture: Path,
    output: Path,
    whole: bool,
    start_layer: int,
    text_start_layer: int,
    checkpoint: str,
    device: str,
    as_json: bool,
) -> None:
    """Map the similarity of a picture and each of TEXTS, and of its words, to patches (GAE)."""
    with steps("loading libraries", "loading the model", "looking for the texts") as done:
        from tqdm import tqdm

        from cots_cli.relevance_page import draw
        from cots_model.errors import InputError
        from cots_model.explainer import Explainer
        from cots_model.images import decode_image

        if output.suffix.lower() != ".png":
            raise InputError(f"{output}: maps are written as PNG; give a name that ends in .png")
        if not output.parent.is_dir():
            raise InputError(f"there is no folder {output.parent}; make it, or write elsewhere")
        if not all(text.strip() for text in texts):
            raise InputError("a text is empty; say what to look for")
        done()
        img = decode_image(picture)
        explainer = Explainer.load(checkpoint, device=device)
        done()
        layers = {"start_layer": start_layer, "text_start_layer": text_start_layer}
        found = [explainer(img, text, **layers) for text in texts]
    num_words = 0 if whole else sum(len(explainer.spans(text)) for text in texts)
    with tqdm(total=num_words, unit=" words", disable=is_quiet() or whole, leave=False) as bar:
        of_words = [
            None
            if whole
            else explainer.words(img, text, start_layer=start_layer, before_word=bar.update)
            for text in texts
        ]
    pairs = list(zip(found, of_words, strict=True))
    drawn = draw(explainer.base(img), [tile for pair in pairs for tile in _tiles(*pair)])
    try:
        drawn.save(output)
    except OSError as err:
        raise InputError(f"--out {output} cannot be written ({err.strerror or err})") from err
    if as_json:
        click.echo(json.dumps([_as_json(*pair) for pair in pairs], ensure_ascii=False))
        return
    for one, words in pairs:
        shares = ", ".join(f"{word} {share:.0%}" for word, share in one.words)
        click.echo(f"{one.similarity:.3f}  {one.text}  ({shares})")
        for word in () if words is None else words.words:
            click.echo(f"  {word.similarity:.3f}  {word.word}")
    click.echo(f"maps in {output}")


def _tiles(one: Explained, words: WordsExplained | None) -> list[Tile]:
    """The map of a text, and those of its words."""
    from cots_cli.relevance_page import Tile

    shares = " ".join(f"{word} {share:.0%}" for word, share in one.words)
    whole = Tile(one.patch_hw, one.text, f"{one.similarity:.3f}  {shares}")
    if words is None or len(words.words) < 2:
        return [whole]
    return [
        whole,
        *(Tile(word.level_hw, word.word, f"{word.similarity:.3f}") for word in words.words),
    ]


def _as_json(one: Explained, words: WordsExplained | None) -> dict[str, object]:
    maps = () if words is None else words.words
    return {
        "text": one.text,
        "similarity": one.similarity,
        "words": [{"word": word, "share": share} for word, share in one.words],
        "patches": one.patch_hw.tolist(),
        "maps": [
            {
                "word": word.word,
                "start": word.start,
                "end": word.end,
                "similarity": word.similarity,
                "map": word.level_hw.tolist(),
            }
            for word in maps
        ],
    }
