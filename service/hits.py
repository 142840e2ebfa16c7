"""A hit as it is sent, over HTTP and by `cots search --json`."""

from __future__ import annotations

from collections.abc import Sequence

from index_builder.search import Hit
from service.links import item_path
from service.schemas import FrameBody, HitBody, MomentBody


def hit_body(
    gallery_name: str,
    hit: Hit,
    *,
    metadata: bool = True,
    embedding: Sequence[float] | None = None,
) -> HitBody:
    """The wire form of a hit; what it does not have is `None`, and not sent."""
    return HitBody(
        row=hit.row,
        id=hit.id,
        score=hit.score,
        uri=hit.uri,
        thumbnail=_thumbnail(gallery_name, hit),
        metadata=hit.metadata if metadata else None,
        embedding=None if embedding is None else list(embedding),
        text=hit.text,
        start_s=hit.start_s,
        end_s=hit.end_s,
        moment=None if hit.moment is None else MomentBody.model_validate(hit.moment),
        frames=None if hit.frames is None else [FrameBody.model_validate(f) for f in hit.frames],
    )


def _thumbnail(gallery_name: str, hit: Hit) -> str | None:
    """Of a video the frame that was found; a text has none."""
    if hit.text is not None:
        return None
    path = f"{item_path(gallery_name, hit.id)}/thumbnail"
    return path if hit.moment is None else f"{path}?time_s={hit.moment.time_s!r}"
