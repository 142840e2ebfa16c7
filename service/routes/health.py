"""`/livez` and `/readyz`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.routes import parameters
from service.schemas import Health

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> Health:
    """200 while the process can answer."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health}})
async def readyz(
    request: Request, service: parameters.CurrentService, response: Response
) -> Health:
    """200 when the galleries are loaded and a probe forward pass finished lately, else 503.

    A new version that was refused is a warning: the old one goes on. So is a thread that waits for
    a file and does not come back, and a look at the galleries that takes long.
    """
    reasons = service.readiness.reasons()
    lost = service.registry.reasons()
    warnings = [
        *service.registry.warnings(),
        *service.reloader.warnings(),
        *service.readiness.warnings(),
    ]
    if service.settings.require_all_galleries:
        reasons += lost
    else:
        warnings = lost + warnings
    if not service.registry.loaded:
        reasons.append("no gallery is served")
    response.headers["Cache-Control"] = "no-store"
    if reasons:
        response.status_code = 503
        request.state.error_code = "not_ready"
    return Health(status="unavailable" if reasons else "ok", reasons=reasons, warnings=warnings)
