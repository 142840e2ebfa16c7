"""`cots search`: the service's search without a server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cots_cli.progress import steps

if TYPE_CHECKING:
    from cots_model.encoder import Encoder, Vectors
    from index_builder.filter import Filter
    from index_builder.ranking import RankBy
    from index_builder.search import Hit


@click.command(
    name="search",
    epilog="""\b
Examples:
  cots search --gallery galleries/photos "a dog runs through snow"
  cots search --gallery galleries/photos --image query.jpg -k 5 --json
  cots search --gallery galleries/clips "a goal is scored" --rank-by frame
  cots search --gallery galleries/captions --image query.jpg
  cots search --gallery galleries/photos "a dog" --filter '{"year": {"gte": 2020}}' --deduplicate
""",
)
@click.argument("words", nargs=-1)
@click.option("--gallery", type=click.Path(path_type=Path), required=True, help="Gallery folder.")
@click.option("--image", type=click.Path(path_type=Path), help="Search by a picture instead.")
@click.option("-k", "k", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0, help="Leave out the best so many.")
@click.option("--min-score", type=click.FloatRange(-1, 1), help="Leave out hits below this score.")
@click.option("--filter", "filter_json", metavar="JSON", help="Conditions on metadata, as in HTTP.")
@click.option("--deduplicate", is_flag=True, help="Of near-duplicates only the best.")
@click.option(
    "--duplicate-similarity",
    type=click.FloatRange(0, 0.9999, min_open=True),
    default=0.97,
    show_default=True,
    help="Cosine from which on two hits are near-duplicates.",
)
@click.option(
    "--rank-by",
    type=click.Choice(["mean", "frame"]),
    default="mean",
    show_default=True,
    help="Score of a video: the mean of its frames, or its best one.",
)
@click.option(
    "--checkpoint", default="cots-mini", show_default=True, help="Folder, name or hub id."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help='Print {"hits": …} as over HTTP.')
def command(
    words: tuple[str, ...],
    gallery: Path,
    image: Path | None,
    k: int,
    offset: int,
    min_score: float | None,
    filter_json: str | None,
    deduplicate: bool,
    duplicate_similarity: float,
    rank_by: RankBy,
    checkpoint: str,
    device: str,
    as_json: bool,
) -> None:
    """Find the pictures, videos or texts of a gallery that fit WORDS, or a picture.

    Of a video the moment is told, too: when the frame is shown that fits best.
    """
    text = " ".join(words)
    if not words and image is None:
        raise click.UsageError('say what to look for: words, such as "two dogs", or --image FILE')
    if words and image is not None:
        raise click.UsageError(f"words ({text!r}) and --image are two searches; give one of them")
    if words and not text.strip():
        raise click.UsageError("the words are empty; say what is looked for")
    if min_score is not None and math.isnan(min_score):
        raise click.UsageError("--min-score is not a number; give one from -1 to 1")
    where = None if filter_json is None else _parse_filter(filter_json)
    with steps(
        "loading libraries", "loading the model", "opening the gallery", "searching"
    ) as done:
        from cots_model.encoder import Encoder
        from cots_model.faults import describe_cut
        from index_builder.gallery import Gallery, read_manifest
        from index_builder.search import search_gallery

        done()
        read_manifest(gallery)  # a wrong folder should not wait for the model
        encoder = Encoder.load(checkpoint, device=device)
        done()
        opened = Gallery.open(gallery, expected_fingerprint=encoder.fingerprint, device=device)
        done()
        query_1E, cut_at = _embed(encoder, text, image)
        [hits] = search_gallery(
            opened,
            query_1E,
            k=k,
            offset=offset,
            min_score=min_score,
            where=where,
            distinct=duplicate_similarity if deduplicate else None,
            rank_by=rank_by,
        )
    warning = None if cut_at is None else describe_cut("query", text, cut_at, encoder.name)
    if as_json:
        _print_json(opened.name, hits, warning)
    else:
        _print_hits(hits)
    if warning is not None:
        click.echo(f"Note: the {warning}.", err=True)


def _parse_filter(text: str) -> Filter:
    from pydantic_core import from_json

    from index_builder.filter import parse_filter

    try:
        raw = from_json(text, allow_inf_nan=False)
    except ValueError as err:
        example = json.dumps({"year": {"gte": 2020}})
        raise click.UsageError(f"--filter is not JSON ({err}); for example '{example}'") from err
    return parse_filter(raw)


def _embed(encoder: Encoder, text: str, image: Path | None) -> tuple[Vectors, int | None]:
    """The query `[1,E]`, and where the model stops reading a text that it does not read whole."""
    from cots_model.images import decode_image

    if image is not None:
        return encoder.encode_images([decode_image(image)]), None
    read = encoder.read_texts([text])
    return read.z_BE, read.cut_at_B[0]


def _print_json(gallery_name: str, hits: list[Hit], warning: str | None) -> None:
    """As over HTTP."""
    answer: dict[str, Any] = {"hits": [_hit_fields(gallery_name, hit) for hit in hits]}
    if warning is not None:
        answer["warnings"] = [{"message": warning, "param": "query", "code": "text_cut"}]
    click.echo(json.dumps(answer, ensure_ascii=False))


def _print_hits(hits: list[Hit]) -> None:
    if not hits:
        click.echo("nothing found", err=True)
    for hit in hits:
        click.echo(_line(hit))


def _line(hit: Hit) -> str:
    parts = [f"{hit.score:.4f}", hit.id]
    if hit.moment is not None:
        parts.append(f"at {_clock(hit.moment.time_s)}")
    parts.append(hit.uri)
    if hit.text is not None:
        parts.append(" ".join(hit.text.split()))
    return "  ".join(parts)


def _clock(time_s: float) -> str:
    """Such as `0:12.4` or `1:02:05.0`, never later than the time itself."""
    tenths = int(time_s * 10 + 1e-6)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    ahead = f"{hours}:{minutes:02d}" if hours else str(minutes)
    return f"{ahead}:{rest // 10:02d}.{rest % 10}"


def _hit_fields(gallery_name: str, hit: Hit) -> dict[str, object]:
    """A hit with the fields it has over HTTP."""
    from service.hits import hit_body

    return hit_body(gallery_name, hit).model_dump(exclude_none=True)
