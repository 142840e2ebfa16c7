"""`POST /v1/explain`: which word of a text is where in a picture."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.responses import Response
from PIL import Image

from cots_model.errors import ImageError
from cots_model.images import decode_image
from index_builder.content import ContentError
from index_builder.gallery import Gallery, Item
from service.bodies import read_json
from service.errors import ApiError, invalid, to_api_error
from service.explaining import ExplainJob, Shown, count_words, require_explainable, shown
from service.queries import check_text, decode_base64
from service.rendering import FrameError, read_frame, read_picture, shown_time_s
from service.routes.parameters import (
    NO_QUERY,
    CurrentService,
    arrival_of,
    body_schema,
    deadline_of,
    errors,
)
from service.schemas import ExplainRequest, ExplainResponse, ExplainTookMs
from service.state import Service

router = APIRouter(
    tags=["explain"],
    responses=errors(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
    dependencies=[NO_QUERY],
)

_EXAMPLE = {"text": "two dogs playing in snow", "gallery": "photos", "item_id": "a/b.jpg"}


@router.post(
    "/v1/explain",
    response_model=ExplainResponse,
    openapi_extra=body_schema(ExplainRequest, _EXAMPLE),
)
async def explain(request: Request, service: CurrentService) -> Response:
    """Which word of a text is where in a picture: a map for each word (GAE)."""
    example = '{"text": "a dog in snow", "gallery": "photos", "item_id": "a/b.jpg"}'
    body = await read_json(request, ExplainRequest, example=example)
    deadline_s = deadline_of(service)
    _check(body, service)
    num_words = count_words(service.embedder.encoder, body.text)
    picture = await _picture(service, body, deadline_s)
    job = ExplainJob(picture, body.text, num_words, body.overlay, body.start_layer, deadline_s)
    done = await service.explaining.run(job)
    answer = ExplainResponse(
        model=service.embedder.encoder.name,
        similarity=done.value.similarity,
        words=done.value.words,
        took_ms=ExplainTookMs(
            queue=round(done.queue_ms, 3),
            explain=round(done.work_ms, 3),
            total=round((time.monotonic() - arrival_of(request)) * 1000, 3),
        ),
    )
    write = functools.partial(answer.model_dump_json, exclude_none=True)
    if body.overlay:  # megabytes
        text = (await service.decoding.run(write, deadline_s=deadline_s)).value
    else:
        text = write()
    return Response(text, media_type="application/json")


def _check(body: ExplainRequest, service: Service) -> None:
    check_text(body.text, "text", service.settings.max_text_bytes)
    if body.image is None and (body.gallery is None or body.item_id is None):
        missing = "item_id" if body.item_id is None else "gallery"
        raise invalid("query_form", "give either gallery and item_id, or image", param=missing)
    if body.image is not None and (body.gallery is not None or body.item_id is not None):
        raise invalid("query_form", "give either gallery and item_id, or image", param="image")
    if body.image is not None and body.time_s is not None:
        message = "time_s is for videos, and image is a picture; leave it out"
        raise invalid("invalid_value", message, param="time_s")
    require_explainable(service.embedder.encoder, body.start_layer)


async def _picture(service: Service, body: ExplainRequest, deadline_s: float) -> Shown:
    max_pixels, encoder = service.settings.max_image_pixels, service.embedder.encoder

    def ready(read: Callable[[], Image.Image]) -> Callable[[], Shown]:
        return lambda: shown(encoder, read())

    if body.image is not None:
        given = body.image

        def decode() -> Image.Image:
            return decode_image(decode_base64(given, param="image"), max_pixels=max_pixels)

        try:
            return (await service.decoding.run(ready(decode), deadline_s=deadline_s)).value
        except ImageError as err:
            raise to_api_error(err, param="image") from err
    assert body.gallery is not None
    gallery = service.registry.get(body.gallery)
    row, item = await _find(service, gallery, body.item_id or "", deadline_s)
    time_s = _time_s(gallery, item, body.time_s)
    try:
        if time_s is None:
            read = functools.partial(read_picture, gallery, row, max_pixels)
            return (await service.decoding.run(ready(read), deadline_s=deadline_s)).value
        frame = functools.partial(
            read_frame, gallery, row, max_pixels, time_s=time_s, until_s=deadline_s
        )
        return (await service.videos.run(ready(frame), deadline_s=deadline_s)).value
    except ContentError as err:
        message = f"the original of {body.item_id!r} cannot be read ({err.reason})"
        status = 504 if err.reason == "timeout" else 404
        raise ApiError(status, f"content_{err.reason}", message, param="item_id") from err
    except ImageError as err:
        raise to_api_error(err, param="item_id") from err
    except FrameError as err:
        raise invalid("not_explainable", str(err), param="item_id") from err


async def _find(
    service: Service, gallery: Gallery, item_id: str, deadline_s: float
) -> tuple[int, Item]:
    def find() -> tuple[int, Item]:
        row = gallery.row(item_id)
        return row, gallery.item(row)

    return (await service.decoding.run(find, deadline_s=deadline_s)).value


def _time_s(gallery: Gallery, item: Item, given_s: float | None) -> float | None:
    """Which frame of a video; None of a picture."""
    modality = gallery.manifest.modality
    if modality == "text":
        message = f"gallery {gallery.name!r} is one of texts; only pictures are explained"
        raise invalid("not_explainable", message, param="gallery")
    if modality == "video":
        return shown_time_s(item, given_s)
    if given_s is not None:
        message = "time_s is for videos, and this is a picture; leave it out"
        raise invalid("invalid_value", message, param="time_s")
    return None
