"""`/`, the web page, and `/docs`, the description of the routes: from files of packages alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.content import etag_matches

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_OWN = (
    "index.html",
    "app.js",
    "grid.js",
    "explain.js",
    "app.css",
    "icon.svg",
    "docs.html",
    "docs.js",
)
_HITS, _PAGE = b'data-hits="%d"', 30
_SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
_PAGES = {"/": "index.html", "/docs": "docs.html", "/favicon.ico": "icon.svg"}


def _policy(images: str) -> str:
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' {images}; "
        "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


_POLICY = _policy("blob:")
_DOCS_POLICY = _policy("data:")  # Swagger UI draws its icons so


@dataclass(frozen=True)
class Asset:
    """One file of a page."""

    data: bytes
    media_type: str
    etag: str
    policy: str


def load_assets(max_k: int) -> dict[str, Asset]:
    """Read the files of the pages: ours, and those of Swagger UI as fastapi-offline brings them.

    Args:
        max_k: most hits that the page may ask for at once.
    """
    own = resources.files("service") / "static"
    swagger_ui = resources.files("fastapi_offline") / "static"
    found = {name: own / name for name in _OWN} | {n: swagger_ui / n for n in _SWAGGER_UI}
    assets = {}
    for name, file in found.items():
        data = file.read_bytes()
        if name == "index.html":
            data = data.replace(_HITS % _PAGE, _HITS % min(_PAGE, max_k))
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        policy = _DOCS_POLICY if name == "docs.html" else _POLICY
        assets[name] = Asset(data, _TYPES[name.rpartition(".")[2]], etag, policy)
    return assets


def page_router(max_k: int) -> APIRouter:
    """The pages and their files; a name is looked up in a table, never on disk."""
    assets = load_assets(max_k)
    router = APIRouter(include_in_schema=False)

    def add(path: str, asset: Asset) -> None:
        async def answer(request: Request) -> Response:
            headers = {
                "ETag": asset.etag,
                "Cache-Control": "no-cache",
                "Content-Security-Policy": asset.policy,
            }
            if etag_matches(request.headers.get("if-none-match"), asset.etag):
                return Response(status_code=304, headers=headers)
            return Response(asset.data, headers=headers, media_type=asset.media_type)

        router.add_api_route(path, answer, methods=["GET"])

    for path, name in _PAGES.items():
        add(path, assets[name])
    for name, asset in assets.items():
        if not name.endswith(".html"):
            add(f"/static/{name}", asset)
    return router
