"""`/v1/embeddings`, `/v1/models` and `/health`, for clients of OpenAI and infinity.

Infinity's client knows no `/v1`, so every path is there without it as well.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.bodies import read_json
from service.compat.embeddings import check_model, describe_model, embed
from service.compat.schemas import (
    EmbeddingsRequest,
    EmbeddingsResponse,
    ModelBody,
    ModelList,
    UnixTime,
)
from service.errors import ApiError
from service.routes.parameters import CurrentService, body_schema, deadline_of, errors
from service.state import Service

router = APIRouter(tags=["compatibility"], responses=errors(401))

_ERRORS = errors(400, 404, 408, 413, 415, 422, 429, 503, 504)
_EXAMPLE = {"input": ["two dogs playing in snow"], "model": "cots-mini"}


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingsResponse,
    responses=_ERRORS,
    openapi_extra=body_schema(EmbeddingsRequest, _EXAMPLE),
)
@router.post(
    "/embeddings",
    response_model=EmbeddingsResponse,
    responses=_ERRORS,
    openapi_extra=body_schema(EmbeddingsRequest, _EXAMPLE),
)
async def create_embeddings(request: Request, service: CurrentService) -> Response:
    """Embed texts, or pictures with `"modality": "image"`."""
    body = await read_json(request, EmbeddingsRequest, example='{"input": "a dog"}')
    return await _embed(service, body)


@router.post(
    "/embeddings_image",
    response_model=EmbeddingsResponse,
    responses=_ERRORS,
    openapi_extra=body_schema(EmbeddingsRequest, {"input": ["data:image/jpeg;base64,..."]}),
)
async def create_image_embeddings(request: Request, service: CurrentService) -> Response:
    """Embed pictures: an older way of infinity's, without `modality`."""
    example = '{"input": "data:image/jpeg;base64,..."}'
    body = await read_json(request, EmbeddingsRequest, example=example)
    return await _embed(service, body.model_copy(update={"modality": "image"}))


async def _embed(service: Service, body: EmbeddingsRequest) -> Response:
    answer = await embed(service, body, deadline_s=deadline_of(service))
    return Response(answer.model_dump_json(), media_type="application/json")


@router.get("/v1/models")
@router.get("/models")
async def list_models(service: CurrentService) -> ModelList:
    """The one model that is served."""
    return ModelList(data=[describe_model(service)])


@router.get("/v1/models/{model:path}", responses=errors(404))
@router.get("/models/{model:path}", responses=errors(404))
async def get_model(model: str, service: CurrentService) -> ModelBody:
    """The model, if this is its name."""
    check_model(model, service.embedder.encoder)
    return describe_model(service)


@router.get("/health", responses=errors(503))
async def health(service: CurrentService) -> UnixTime:
    """The time, if the model has answered a probe lately; else 503 with the reasons."""
    reasons = service.readiness.reasons()
    if reasons:
        raise ApiError(503, "not_ready", "; ".join(reasons))
    return UnixTime(unix=time.time())
