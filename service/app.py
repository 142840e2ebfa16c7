"""The application: `create_app(settings)` puts the parts together.

uvicorn.run(create_app(Settings.load()))     # or: cots serve --galleries ROOT
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from service.cors import cors_middleware
from service.errors import install_error_handlers
from service.hosts import TrustedHosts
from service.lag import Lag
from service.limits import Limits
from service.metrics import Metrics
from service.middleware import ApiKeys, HeadAsGet, RequestLog, SecurityHeaders
from service.openapi import DESCRIPTION, complete
from service.routes import (
    clip_retrieval,
    explain,
    galleries,
    health,
    items,
    metrics,
    openai,
    search,
)
from service.routes.page import page_router
from service.settings import Settings
from service.state import Resources, Service

log = logging.getLogger(__name__)

_FIGURES_S = 1.0
"""Pause between two looks at what `/metrics` looks up, for scrapes that come to another worker."""


class Api(FastAPI):
    """FastAPI with a complete OpenAPI document."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings
        self._document: dict[str, Any] | None = None

    def openapi(self) -> dict[str, Any]:
        """The document; every call gives the same object."""
        if self._document is None:
            self._document = complete(super().openapi(), self._settings)
        return self._document


def create_app(
    settings: Settings, resources: Resources | None = None, *, worker: int = 0
) -> FastAPI:
    """Build the application.

    Args:
        settings: all limits and places.
        resources: a model and galleries already loaded; else the lifespan loads them.
        worker: number of this process among the workers.
    """
    figures = Metrics(worker=worker)
    lag = Lag()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loaded = resources
        if loaded is None:
            loaded = await asyncio.to_thread(Resources.load, settings)
        service = Service(settings, loaded, figures)
        app.state.service = service
        _tell_build(figures, loaded)
        await service.readiness.probe()
        tasks = [
            asyncio.create_task(service.readiness.watch(), name="readiness"),
            asyncio.create_task(_watch_figures(service), name="metrics"),
            asyncio.create_task(lag.watch(), name="lag"),
        ]
        log.info("service started", extra={"galleries": sorted(loaded.registry.loaded)})
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            app.state.ended = service.close()

    app = Api(
        settings,
        title="COTS Retrieval",
        description=DESCRIPTION,
        version=version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=_middleware(settings, figures, lag),
    )
    app.state.ended = False
    app.state.metrics = figures
    app.state.lag = lag
    install_error_handlers(app)
    for router in (  # each is asked in turn whether a request is for it
        search.router,
        health.router,
        metrics.router,
        galleries.router,
        items.router,
        explain.router,
        openai.router,
        clip_retrieval.router,
        page_router(settings.max_k),
    ):
        app.include_router(router)
    return app


async def _watch_figures(service: Service) -> None:
    while True:
        try:
            service.refresh_metrics()
        except Exception:  # one look that fails must not be the last
            log.exception("the figures could not be looked up")
        await asyncio.sleep(_FIGURES_S)


def _tell_build(figures: Metrics, loaded: Resources) -> None:
    encoder = loaded.encoder
    figures.build(
        version=version(),
        model=encoder.name,
        device=encoder.device.type,
        precision=encoder.precision,
    )


def _middleware(settings: Settings, figures: Metrics, lag: Lag) -> list[Middleware]:
    """Outermost first."""
    limits = Middleware(
        Limits,
        max_bytes=settings.max_body_bytes,
        together_bytes=settings.max_bodies_bytes,
        timeout_s=settings.body_timeout_s,
        lag=lag,
    )
    keys = Middleware(ApiKeys, sha256_hex=settings.api_key_sha256)
    hosts = Middleware(TrustedHosts, names=settings.trusted_hosts())
    outer = [
        Middleware(SecurityHeaders),
        Middleware(RequestLog, metrics=figures),
        *cors_middleware(settings.cors_origins),
        Middleware(HeadAsGet),
    ]
    return [*outer, hosts, keys, limits]


def version() -> str:
    """Of this package."""
    try:
        return metadata.version("cots-retrieval")
    except metadata.PackageNotFoundError:
        return "0"
