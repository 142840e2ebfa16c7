"""`/v1/galleries/{g}/items/{id}`: metadata, thumbnail and original of one item.

The three paths are declared apart for the OpenAPI document; which one is meant is read from the raw
path (`service.links`), because an id may itself end in `/thumbnail`.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from index_builder.content import ContentError
from index_builder.gallery import Gallery, Item
from service.content import ByteRange, ContentResponse, content_headers, etag_matches, parse_range
from service.errors import ApiError, invalid
from service.links import item_path, parse_item_path
from service.rendering import no_thumbnail, shown_time_s, thumbnail_of
from service.routes.parameters import (
    NO_QUERY,
    CurrentService,
    NamedGallery,
    deadline_of,
    errors,
    only_query,
)
from service.schemas import ItemBody
from service.state import Service

T = TypeVar("T")

router = APIRouter(
    prefix="/v1/galleries/{g}/items",
    tags=["items"],
    responses=errors(401, 404, 422, 429, 503, 504),
)

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": _BINARY}},
    304: {"description": "`If-None-Match` names it"},
}
_ORIGINAL: dict[int | str, dict[str, Any]] = {
    200: {"content": {"*/*": _BINARY}},
    206: {"content": {"*/*": _BINARY}, "description": "the range asked for"},
    304: _JPEG[304],
    **errors(416),
}


class ItemParams(BaseModel):
    """Query parameters of the item routes."""

    size: int = Field(default=256, ge=16, description="longer side of the thumbnail, in pixels")
    time_s: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="of a video: which frame, in seconds; else the one in the middle",
    )


ItemId = Annotated[str, Path(description="percent-encoded; a / may stay")]


class ItemRequest:
    """One request for one item, and the service it came to."""

    def __init__(
        self, request: Request, service: CurrentService, gallery: NamedGallery, item_id: ItemId
    ) -> None:
        del item_id  # as the raw path has it, see above
        self.request = request
        self.service: Service = service
        self.gallery: Gallery = gallery
        self.address = parse_item_path(request.scope)
        self.deadline_s = deadline_of(service)

    async def run(self, job: Callable[[], T], *, reads_video: bool = False) -> T:
        """Run `job` in a decoding thread; what reads videos has threads of its own.

        An original that is gone is a 404, and one whose server does not answer a 504.
        """
        pool = self.service.videos if reads_video else self.service.decoding
        done = await self.original(pool.run(job, deadline_s=self.deadline_s))
        return done.value

    async def original(self, reading: Awaitable[T]) -> T:
        """Await what reads the original; that it cannot be served is told as `run` does."""
        try:
            return await reading
        except ContentError as err:
            code = f"content_{err.reason}"
            message = f"the original of {self.address.item_id!r} cannot be served ({err.reason})"
            status = 504 if err.reason == "timeout" else 404
            raise ApiError(status, code, message, param="id") from err

    async def find(self) -> tuple[int, Item]:
        """Row and item; raises ItemNotFoundError."""

        def find() -> tuple[int, Item]:
            row = self.gallery.row(self.address.item_id)
            return row, self.gallery.item(row)

        return await self.run(find)


Asked = Annotated[ItemRequest, Depends(ItemRequest)]


@router.get(
    "/{item_id:path}/thumbnail",
    response_class=Response,
    responses=_JPEG,
    dependencies=[only_query(*ItemParams.model_fields)],
)
async def get_thumbnail(asked: Asked, params: Annotated[ItemParams, Query()]) -> Response:
    """A JPEG of the picture, or of a frame of the video, `size` pixels on its longer side."""
    return await _answer(asked, params)


@router.get(
    "/{item_id:path}/content",
    response_class=Response,
    responses=_ORIGINAL,
    dependencies=[NO_QUERY],
)
async def get_content(asked: Asked) -> Response:
    """The original, whole or by a byte range."""
    return await _answer(asked)


@router.get("/{item_id:path}", response_model=ItemBody, dependencies=[NO_QUERY])
async def get_item(asked: Asked) -> Response:
    """What is known of the item."""
    return await _answer(asked)


async def _answer(asked: ItemRequest, params: ItemParams | None = None) -> Response:
    row, item = await asked.find()
    match asked.address.view:
        case "thumbnail":
            return await _thumbnail(asked, row, item, params or ItemParams())
        case "content":
            return await _content(asked, row, item)
    body = _describe(asked.gallery, item).model_dump_json(exclude_none=True)
    return Response(body, media_type="application/json")


def _describe(gallery: Gallery, item: Item) -> ItemBody:
    path = item_path(gallery.name, item.id)
    return ItemBody(
        id=item.id,
        gallery=gallery.name,
        uri=item.uri,
        size_bytes=item.size_bytes,
        modified=_iso_time(item.mtime_s) if item.mtime_s else None,
        sha256=item.sha256,
        thumbnail=None if item.text is not None else f"{path}/thumbnail",
        content=f"{path}/content",
        text=item.text,
        start_s=item.start_s,
        end_s=item.end_s,
        duration_s=item.duration_s,
        metadata=item.metadata,
    )


def _iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


async def _thumbnail(asked: ItemRequest, row: int, item: Item, params: ItemParams) -> Response:
    time_s = _check_thumbnail(asked, item, params)
    etag = f'"{item.sha256[:32]}-{params.size}{"" if time_s is None else f"-{time_s!r}"}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=3600"}
    if etag_matches(asked.request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    rendering = thumbnail_of(
        asked.service,
        asked.gallery,
        row,
        item,
        size_px=params.size,
        time_s=time_s,
        deadline_s=asked.deadline_s,
    )
    return Response(await asked.original(rendering), headers=headers, media_type="image/jpeg")


def _check_thumbnail(asked: ItemRequest, item: Item, params: ItemParams) -> float | None:
    """Which frame of a video to show; `None` for pictures."""
    modality, most = asked.gallery.manifest.modality, asked.service.settings.max_thumbnail_px
    if params.size > most:
        message = f"size is {params.size}; 16 to {most} are accepted"
        raise invalid("invalid_value", message, param="size")
    if modality == "text":
        raise no_thumbnail("text items have no thumbnail")
    if modality == "video":
        return shown_time_s(item, params.time_s)
    if params.time_s is not None:
        message = "time_s is for videos, and this is a picture; leave it out"
        raise invalid("invalid_value", message, param="time_s")
    return None


async def _content(asked: ItemRequest, row: int, item: Item) -> Response:
    etag = f'"{item.sha256}"'
    headers = content_headers(_file_name(item), etag)
    given = asked.request.headers
    if etag_matches(given.get("if-none-match"), etag):
        return Response(status_code=304, headers={"ETag": etag})
    is_video = asked.gallery.manifest.modality == "video"
    stream = await asked.run(
        functools.partial(asked.gallery.open_content, row), reads_video=is_video
    )
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


def _file_name(item: Item) -> str:
    """What tells the type of an original: the name of its file or member; ids need not have one."""
    if item.text is not None:
        return "text.txt"
    parts = urlsplit(item.uri)
    member = parts.fragment if item.offset_bytes is not None else ""
    return unquote(member or parts.path).rpartition("/")[2]
