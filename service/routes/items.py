"""`/v1/galleries/{g}/items/{id}`: metadata, thumbnail and original of one item.

The three paths are declared apart for the OpenAPI document; which one is meant is read from the raw
path (`service.links`), because an id may itself end in `/thumbnail`.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from index_builder.content import ContentError
from index_builder.gallery import Gallery, Item
from service.content import ByteRange, ContentResponse, content_headers, etag_matches, parse_range
from service.errors import ApiError, invalid
from service.links import item_path, parse_item_path
from service.routes.parameters import CurrentService, NamedGallery, deadline_of, errors
from service.schemas import ItemBody
from service.state import Service
from service.thumbnails import make_thumbnail

T = TypeVar("T")

router = APIRouter(
    prefix="/v1/galleries/{g}/items",
    tags=["items"],
    responses=errors(401, 404, 416, 422, 429, 503, 504),
)


class ItemParams(BaseModel):
    """Query parameters of the item routes."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(default=256, ge=16, description="longer side of the thumbnail, in pixels")


class NoParams(BaseModel):
    """No query parameter is accepted."""

    model_config = ConfigDict(extra="forbid")


class ItemRequest:
    """One request for one item, and the service it came to."""

    def __init__(self, request: Request, service: CurrentService, gallery: NamedGallery) -> None:
        self.request = request
        self.service: Service = service
        self.gallery: Gallery = gallery
        self.address = parse_item_path(request.scope)

    async def run(self, job: Callable[[], T]) -> T:
        """Run `job` in a decoding thread; an original that is gone is a 404."""
        try:
            deadline_s = deadline_of(self.service)
            return (await self.service.decoding.run(job, deadline_s=deadline_s)).value
        except ContentError as err:
            code = f"content_{err.reason}"
            message = f"the original of {self.address.item_id!r} cannot be served ({err.reason})"
            raise ApiError(404, code, message, param="id") from err

    async def find(self) -> tuple[int, Item]:
        """Row and item; raises ItemNotFoundError."""

        def find() -> tuple[int, Item]:
            row = self.gallery.row(self.address.item_id)
            return row, self.gallery.item(row)

        return await self.run(find)


Asked = Annotated[ItemRequest, Depends(ItemRequest)]


@router.get("/{item_id:path}/thumbnail", response_class=Response)
async def get_thumbnail(asked: Asked, params: Annotated[ItemParams, Query()]) -> Response:
    """A JPEG of the item, `size` pixels on its longer side."""
    return await _answer(asked, params.size)


@router.get("/{item_id:path}/content", response_class=Response)
async def get_content(asked: Asked, params: Annotated[NoParams, Query()]) -> Response:
    """The original, whole or by a byte range."""
    return await _answer(asked)


@router.get("/{item_id:path}", response_model=ItemBody)
async def get_item(asked: Asked, params: Annotated[NoParams, Query()]) -> Response:
    """What is known of the item."""
    return await _answer(asked)


async def _answer(asked: ItemRequest, size_px: int = 256) -> Response:
    row, item = await asked.find()
    match asked.address.view:
        case "thumbnail":
            return await _thumbnail(asked, row, item, size_px)
        case "content":
            return await _content(asked, row, item)
    return Response(_describe(asked.gallery, item).model_dump_json(), media_type="application/json")


def _describe(gallery: Gallery, item: Item) -> ItemBody:
    path = item_path(gallery.name, item.id)
    return ItemBody(
        id=item.id,
        gallery=gallery.name,
        uri=item.uri,
        size_bytes=item.size_bytes,
        modified=datetime.fromtimestamp(item.mtime_s, UTC).isoformat(timespec="seconds"),
        sha256=item.sha256,
        thumbnail=f"{path}/thumbnail",
        content=f"{path}/content",
        metadata=item.metadata,
    )


async def _thumbnail(asked: ItemRequest, row: int, item: Item, size_px: int) -> Response:
    settings, cache = asked.service.settings, asked.service.thumbnails
    if size_px > settings.max_thumbnail_px:
        message = f"size is {size_px}; 16 to {settings.max_thumbnail_px} are accepted"
        raise invalid("invalid_value", message, param="size")
    if asked.gallery.manifest.modality != "image":
        message = f"{asked.gallery.manifest.modality} items have no thumbnail"
        raise ApiError(404, "thumbnail_not_available", message, param="id")
    etag = f'"{item.sha256[:32]}-{size_px}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=3600"}
    if etag_matches(asked.request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    jpeg = cache.get((item.sha256, size_px))
    if jpeg is None:
        job = functools.partial(_render, asked.gallery, row, size_px, settings.max_image_pixels)
        jpeg = await asked.run(job)
        cache.put((item.sha256, size_px), jpeg)
    return Response(jpeg, headers=headers, media_type="image/jpeg")


def _render(gallery: Gallery, row: int, size_px: int, max_pixels: int) -> bytes:
    return make_thumbnail(gallery.read_content(row), size_px, max_pixels=max_pixels)


async def _content(asked: ItemRequest, row: int, item: Item) -> Response:
    etag = f'"{item.sha256}"'
    headers = content_headers(item.id, etag)
    given = asked.request.headers
    if etag_matches(given.get("if-none-match"), etag):
        return Response(status_code=304, headers={"ETag": etag})
    stream = await asked.run(functools.partial(asked.gallery.open_content, row))
    try:
        size_bytes = stream.seek(0, io.SEEK_END)
        current = given.get("if-range", etag) == etag
        wanted = parse_range(given.get("range"), size_bytes) if current else None
        whole = ByteRange(0, size_bytes - 1, size_bytes)
        body = ContentResponse(stream, wanted or whole, partial=wanted is not None, headers=headers)
    except BaseException:
        stream.close()
        raise
    if getattr(asked.request.state, "head", False):
        stream.close()
        return Response(status_code=body.status_code, headers=dict(body.headers))
    return body
