"""`POST /v1/galleries/{g}/search` and its upload form."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from index_builder.gallery import Gallery
from service.bodies import read_search_request, read_upload
from service.errors import ApiError, invalid
from service.queries import Part, parse_query
from service.request_schemas import search_schema, upload_schema
from service.routes.parameters import (
    NO_QUERY,
    CurrentService,
    NamedGallery,
    arrival_of,
    deadline_of,
    errors,
)
from service.schemas import QueryPart, SearchOptions, SearchRequest, SearchResponse
from service.searching import Search, answer_size, check_frames, check_options, run_search
from service.settings import Settings
from service.state import LITTLE_HITS, Service

router = APIRouter(
    prefix="/v1/galleries",
    tags=["search"],
    responses=errors(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
    dependencies=[NO_QUERY],
)


Queries = tuple[tuple[Part, ...] | ApiError, ...]


def _body_schema(kind: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    content = {kind: {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/{g}/search",
    response_model=SearchResponse,
    openapi_extra=_body_schema(
        "application/json",
        search_schema(),
        {"query": "two dogs playing in snow", "include": ["metadata"]},
    ),
)
async def search(request: Request, service: CurrentService, gallery: NamedGallery) -> Response:
    """Search by words, a picture, an item, an embedding, or a weighted list of these."""
    body = check_options(await read_search_request(request), service.settings)
    check_frames(body, gallery)
    queries, batch = _read_queries(body, service.settings)
    return await _answer(request, service, gallery, body, queries, batch=batch)


@router.post(
    "/{g}/search/upload",
    response_model=SearchResponse,
    openapi_extra=_body_schema("multipart/form-data", upload_schema(), {"include": "metadata"}),
)
async def search_upload(
    request: Request, service: CurrentService, gallery: NamedGallery
) -> Response:
    """Search by an uploaded picture."""
    file, options = await read_upload(request)
    options = check_options(options, service.settings)
    check_frames(options, gallery)
    part = Part(QueryPart(), "file", file)
    return await _answer(request, service, gallery, options, ((part,),), batch=False)


def _read_queries(body: SearchRequest, settings: Settings) -> tuple[Queries, bool]:
    if body.queries is None:
        return (parse_query(body.query, param="query", settings=settings),), False
    if "query" in body.model_fields_set and body.query is not None:
        message = "both query and queries are given; send one of them"
        raise invalid("query_form", message, param="queries")
    if not 1 <= len(body.queries) <= settings.max_queries:
        message = (
            f"queries has {len(body.queries)} entries; 1 to {settings.max_queries} are accepted"
        )
        raise invalid("invalid_value", message, param="queries")
    return tuple(_parse_entry(v, n, settings) for n, v in enumerate(body.queries)), True


def _parse_entry(value: Any, number: int, settings: Settings) -> tuple[Part, ...] | ApiError:
    try:
        return parse_query(value, param=f"queries.{number}", settings=settings)
    except ApiError as err:  # one bad entry fails alone
        return err


async def _answer(
    request: Request,
    service: Service,
    gallery: Gallery,
    options: SearchOptions,
    queries: Queries,
    *,
    batch: bool,
) -> Response:
    size = answer_size(options, gallery, len(queries), service.settings)
    request.state.held.enter_context(service.answers.share()).take(size)
    asked = Search(gallery, options, queries, batch, arrival_of(request), deadline_of(service))
    answer = await run_search(service, asked)
    write = functools.partial(answer.model_dump_json, exclude_none=True)
    if size <= LITTLE_HITS:
        text = write()
    else:  # what takes long to write holds up nobody else
        text = (await service.decoding.run(write, deadline_s=asked.deadline_s)).value
    return Response(text, media_type="application/json")
