"""The application: `create_app(settings)` puts the parts together.

uvicorn.run(create_app(Settings.load()))     # or: cots serve --galleries ROOT
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from importlib import metadata

from fastapi import FastAPI
from starlette.middleware import Middleware

from service.cors import cors_middleware
from service.errors import install_error_handlers
from service.hosts import TrustedHosts
from service.limits import BodyLimit
from service.middleware import ApiKeys, HeadAsGet, RequestLog, SecurityHeaders
from service.routes import clip_retrieval, galleries, health, items, openai, search
from service.routes.page import page_router
from service.settings import Settings
from service.state import Resources, Service

log = logging.getLogger(__name__)


def create_app(settings: Settings, resources: Resources | None = None) -> FastAPI:
    """Build the application.

    Args:
        settings: all limits and places.
        resources: a model and galleries already loaded; else the lifespan loads them.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loaded = resources
        if loaded is None:
            loaded = await asyncio.to_thread(Resources.load, settings)
        service = Service(settings, loaded)
        app.state.service = service
        await service.readiness.probe()
        watching = asyncio.create_task(service.readiness.watch(), name="readiness")
        log.info("service started", extra={"galleries": sorted(loaded.registry.loaded)})
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            app.state.ended = service.close()

    app = FastAPI(
        title="COTS Retrieval",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=_middleware(settings),
    )
    app.state.ended = False
    install_error_handlers(app)
    for router in (
        health.router,
        galleries.router,
        search.router,
        items.router,
        openai.router,
        clip_retrieval.router,
        page_router(),
    ):
        app.include_router(router)
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    """Outermost first."""
    limit = Middleware(
        BodyLimit, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
    )
    keys = Middleware(ApiKeys, sha256_hex=settings.api_key_sha256)
    hosts = Middleware(TrustedHosts, names=settings.trusted_hosts())
    outer = [
        Middleware(SecurityHeaders),
        Middleware(RequestLog),
        *cors_middleware(settings.cors_origins),
        Middleware(HeadAsGet),
    ]
    return [*outer, hosts, keys, limit]


def _version() -> str:
    try:
        return metadata.version("cots-retrieval")
    except metadata.PackageNotFoundError:
        return "0"
