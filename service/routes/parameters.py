"""What routes take: the service, a gallery by name, the request's deadline, error descriptions."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel

from index_builder.gallery import Gallery
from service.errors import repeated_parameter, unknown_parameter
from service.schemas import ErrorResponse
from service.state import Service, get_service

CurrentService = Annotated[Service, Depends(get_service)]


async def get_gallery(g: str, service: CurrentService) -> Gallery:
    """The gallery named in the path."""
    return service.registry.get(g)


NamedGallery = Annotated[Gallery, Depends(get_gallery)]


def only_query(*known: str) -> Any:
    """A dependency that lets no query parameter but the known ones pass, and none of them twice.

    What is asked for by another one, such as `?top=5`, must not be passed over in silence.
    """

    async def check(request: Request) -> None:
        counts = Counter(name for name, _ in request.query_params.multi_items())
        for name, times in counts.items():
            if name not in known:
                raise unknown_parameter(name, known)
            if times > 1:
                raise repeated_parameter(name, times)

    return Depends(check)


NO_QUERY = only_query()


def deadline_of(service: Service) -> float:
    """When work that begins now must be finished, on the clock of `time.monotonic`."""
    return time.monotonic() + service.settings.deadline_s


def arrival_of(request: Request) -> float:
    """When the request arrived, on the clock of `time.monotonic`."""
    return float(request.state.arrived_s)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI descriptions of the error statuses of a route."""
    return {status: {"model": ErrorResponse} for status in statuses}


def body_schema(body: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI description of a JSON body that the route reads itself."""
    content = {"application/json": {"schema": body.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}
