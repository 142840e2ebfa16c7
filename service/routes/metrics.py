"""`/metrics`: the figures of this server, for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.routes.parameters import CurrentService

router = APIRouter(tags=["operations"])

_TEXT = {"schema": {"type": "string"}, "example": 'cots_queue_depth{queue="encode"} 0.0\n'}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_LATEST.partition(";")[0]: _TEXT}}},
)
async def metrics(service: CurrentService) -> Response:
    """Requests, stages, batches, queues, rejections, galleries and processes, as text."""
    service.refresh_metrics()
    text = await asyncio.to_thread(service.metrics.render)
    headers = {"Cache-Control": "no-store"}
    return Response(text, headers=headers, media_type=CONTENT_TYPE_LATEST)
