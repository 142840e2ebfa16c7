"""clip-retrieval's search: hits with integer ids, metadata beside them, thumbnails inside.

An id is the row of an item in the version that was searched; the next version may number anew.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from cots_model.errors import ImageError
from index_builder.content import ContentError
from index_builder.gallery import Gallery, Item
from index_builder.items import Json
from service.compat.pictures import picture_query, url_query
from service.compat.schemas import KnnRequest, MetadataRequest
from service.errors import ApiError, invalid
from service.jobs import DeadlineError, QueueFullError
from service.queries import Part, parse_query
from service.rendering import shown_time_s, thumbnail_of
from service.schemas import HitBody, QueryPart, SearchOptions
from service.searching import Search, run_search
from service.settings import Settings
from service.state import Service

THUMBNAIL_PX = 256
MAX_THUMBNAILS = 100
"""In one answer; the hits behind have their metadata all the same."""
_INPUTS = "text, image, image_url or embedding_input"


@dataclass(frozen=True)
class Row:
    """An item to describe: its row, and of a video the moment to show."""

    row: int
    time_s: float | None = None


async def knn(
    service: Service, gallery: Gallery, body: KnnRequest, *, arrived_s: float, deadline_s: float
) -> list[dict[str, Json]]:
    """The hits, best first; those past `num_images` have `id` and `similarity` only.

    Raises:
        ApiError: 422 naming the field at fault, and whatever a search raises.
    """
    _check_modality(gallery, body.modality)
    query = _read_query(body, service.settings)
    wanted = body.num_images if body.num_result_ids is None else body.num_result_ids
    if not wanted:
        return []
    options = SearchOptions(
        k=min(wanted, service.settings.max_k), deduplicate=bool(body.deduplicate), include=[]
    )
    search = Search(gallery, options, (query,), False, arrived_s, deadline_s)
    hits = (await run_search(service, search)).hits or []
    shown = [Row(hit.row, _moment(hit)) for hit in hits[: body.num_images]]
    columns: list[dict[str, Json]] = [{} for _ in hits]
    columns[: len(shown)] = await describe(service, gallery, shown, deadline_s=deadline_s)
    return [
        {**known, "id": hit.row, "similarity": hit.score}
        for known, hit in zip(columns, hits, strict=True)
    ]


async def metadata(
    service: Service, gallery: Gallery, body: MetadataRequest, *, deadline_s: float
) -> list[dict[str, Json]]:
    """Metadata and thumbnails of ids, in their order.

    Raises:
        ApiError: 422 for too many ids, or one that does not exist.
    """
    most = service.settings.max_k
    if len(body.ids) > most:
        message = f"ids has {len(body.ids):,} entries; at most {most:,} are accepted"
        raise invalid("invalid_value", message, param="ids")
    for n, row in enumerate(body.ids):
        if not 0 <= row < len(gallery):
            message = f"gallery {gallery.name!r} has no id {row}; 0 to {len(gallery) - 1} exist"
            raise invalid("item_not_found", message, param=f"ids.{n}")
    found = await describe(service, gallery, [Row(row) for row in body.ids], deadline_s=deadline_s)
    return [{"id": row, "metadata": known} for row, known in zip(body.ids, found, strict=True)]


async def describe(
    service: Service, gallery: Gallery, rows: Sequence[Row], *, deadline_s: float
) -> list[dict[str, Json]]:
    """What is known of items: metadata, `item_id`, of texts `caption`, and the picture as `image`.

    Thumbnails are of the first `MAX_THUMBNAILS`, made a few at a time, so that other requests have
    their turn between them. One whose original cannot be shown is left out, and so are those that
    are not there when half of the time left has passed: the hits matter more.
    """
    if not rows:
        return []
    read = functools.partial(gallery.items, [row.row for row in rows])
    items = (await service.decoding.run(read, deadline_s=deadline_s)).value
    at_once = asyncio.Semaphore(service.settings.decode_threads)
    latest_s = (time.monotonic() + deadline_s) / 2

    async def jpeg(row: Row, item: Item) -> bytes | None:
        async with at_once:
            if time.monotonic() > latest_s:
                return None
            return await _jpeg(service, gallery, row, item, latest_s)

    pairs = list(zip(rows, items, strict=True))
    jpegs = await _gather([jpeg(row, item) for row, item in pairs[:MAX_THUMBNAILS]])
    return [_columns(item, data) for item, data in zip_longest(items, jpegs)]


def _read_query(body: KnnRequest, settings: Settings) -> tuple[Part, ...]:
    """The first of the inputs that is there."""
    if body.text:
        return parse_query(body.text, param="text", settings=settings)
    if body.image:
        return picture_query(body.image, param="image", settings=settings)
    if body.image_url:
        return url_query(body.image_url, param="image_url", settings=settings)
    if body.embedding_input:
        spec = QueryPart(embedding=body.embedding_input)
        return (Part(spec, "embedding_input", flat=True),)
    raise invalid("query_missing", f"nothing to search for; give {_INPUTS}", param="text")


def _check_modality(gallery: Gallery, wanted: str) -> None:
    held = gallery.manifest.modality
    fitting = "text" if held == "text" else "image"
    if wanted != fitting:
        message = f"gallery {gallery.name!r} holds {held} items; send modality {fitting!r}"
        raise invalid("invalid_value", message, param="modality")


def _moment(hit: HitBody) -> float | None:
    return None if hit.moment is None else hit.moment.time_s


async def _jpeg(
    service: Service, gallery: Gallery, row: Row, item: Item, deadline_s: float
) -> bytes | None:
    modality = gallery.manifest.modality
    if modality == "text":
        return None
    try:
        return await thumbnail_of(
            service,
            gallery,
            row.row,
            item,
            size_px=THUMBNAIL_PX,
            time_s=shown_time_s(item, row.time_s) if modality == "video" else None,
            deadline_s=deadline_s,
        )
    except (ContentError, ImageError, DeadlineError, QueueFullError):
        return None
    except ApiError as err:
        if err.code != "thumbnail_not_available":
            raise
        return None


async def _gather(jobs: Sequence[Coroutine[Any, Any, bytes | None]]) -> list[bytes | None]:
    """All results; the first failure ends the others."""
    running = [asyncio.create_task(job) for job in jobs]
    try:
        return await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()


def _columns(item: Item, jpeg: bytes | None) -> dict[str, Json]:
    columns = {key: value for key, value in item.metadata.items() if key != "image"}
    columns["item_id"] = item.id
    if item.text is not None:
        columns["caption"] = item.text
    if jpeg is not None:
        columns["image"] = base64.b64encode(jpeg).decode("ascii")
    return columns
