"""`/knn-service`, `/metadata` and `/indices-list`, for the client and web front of clip-retrieval.

They send no Content-Type, never look at the status, and parse whatever comes as JSON.
"""

from __future__ import annotations

import pydantic_core
from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.bodies import read_json
from service.compat.knn import knn, metadata
from service.compat.schemas import KnnHit, KnnRequest, MetadataRequest, RowMetadata
from service.routes.parameters import (
    CurrentService,
    arrival_of,
    body_schema,
    deadline_of,
    errors,
)

router = APIRouter(tags=["compatibility"], responses=errors(401))

_KNN = {"text": "a dog", "modality": "image", "num_images": 10, "indice_name": "photos"}
_METADATA = {"ids": [0, 1], "indice_name": "photos"}
_ERRORS = errors(400, 404, 408, 413, 422, 429, 503, 504)


@router.post(
    "/knn-service",
    response_model=list[KnnHit],
    responses=_ERRORS,
    openapi_extra=body_schema(KnnRequest, _KNN),
)
async def knn_service(request: Request, service: CurrentService) -> Response:
    """Search by text, picture or embedding; the answer is a bare list."""
    body = await read_json(request, KnnRequest, example='{"text": "a dog", ...}', any_type=True)
    gallery = service.registry.get(body.indice_name)
    hits = await knn(
        service, gallery, body, arrived_s=arrival_of(request), deadline_s=deadline_of(service)
    )
    return Response(pydantic_core.to_json(hits), media_type="application/json")


@router.post(
    "/metadata",
    response_model=list[RowMetadata],
    responses=_ERRORS,
    openapi_extra=body_schema(MetadataRequest, _METADATA),
)
async def get_metadata(request: Request, service: CurrentService) -> Response:
    """Metadata and thumbnails of ids that a search gave."""
    example = '{"ids": [0, 1], "indice_name": "photos"}'
    body = await read_json(request, MetadataRequest, example=example, any_type=True)
    gallery = service.registry.get(body.indice_name)
    found = await metadata(service, gallery, body, deadline_s=deadline_of(service))
    return Response(pydantic_core.to_json(found), media_type="application/json")


@router.get("/indices-list")
async def indices_list(service: CurrentService) -> list[str]:
    """Names of the galleries."""
    return sorted(service.registry.loaded)
