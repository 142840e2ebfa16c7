"""`/`: the web page, from files of this package and nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.content import etag_matches

_FILES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "grid.js": "text/javascript; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Asset:
    """One file of the page."""

    data: bytes
    media_type: str
    etag: str


def load_assets() -> dict[str, Asset]:
    """Read the page's files from the package."""
    folder = resources.files("service") / "static"
    assets = {}
    for name, media_type in _FILES.items():
        data = (folder / name).read_bytes()
        assets[name] = Asset(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return assets


def page_router() -> APIRouter:
    """The page and its files; a name is looked up in a table, never on disk."""
    assets = load_assets()
    router = APIRouter(include_in_schema=False)

    def add(path: str, asset: Asset) -> None:
        async def answer(request: Request) -> Response:
            headers = {
                "ETag": asset.etag,
                "Cache-Control": "no-cache",
                "Content-Security-Policy": _POLICY,
            }
            if etag_matches(request.headers.get("if-none-match"), asset.etag):
                return Response(status_code=304, headers=headers)
            return Response(asset.data, headers=headers, media_type=asset.media_type)

        router.add_api_route(path, answer, methods=["GET"])

    add("/", assets["index.html"])
    add("/favicon.ico", assets["icon.svg"])
    for name, asset in assets.items():
        if name != "index.html":
            add(f"/static/{name}", asset)
    return router
