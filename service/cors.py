"""Which pages elsewhere may read our answers in a browser: none, unless settings name them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_origin(value: str) -> str:
    """An origin as browsers send it: in lower case, without the scheme's own port.

    Raises:
        ValueError: if it is none, or would mean every page.
    """
    accepted = "accepted: https://HOST or https://HOST:PORT (or http), and no * for all"
    try:
        parts = urlsplit(value.strip().lower().removesuffix("/"))
        port = parts.port
    except ValueError as err:
        raise ValueError(f"{value!r} is not an origin ({err}); {accepted}") from err
    host = parts.hostname or ""
    plain = not (parts.path or parts.query or parts.fragment or parts.username is not None)
    if parts.scheme not in _DEFAULT_PORTS or not host or "*" in host or not plain:
        raise ValueError(f"{value!r} is not an origin; {accepted}")
    if not host.isascii():
        raise ValueError(f"{value!r} is not in ASCII; write the name as browsers send it (xn--)")
    shown = f"[{host}]" if ":" in host else host
    own = port is None or port == _DEFAULT_PORTS[parts.scheme]
    return f"{parts.scheme}://{shown}" if own else f"{parts.scheme}://{shown}:{port}"


Origin = Annotated[str, AfterValidator(check_origin)]


def cors_middleware(origins: Collection[str]) -> list[Middleware]:
    """What lets pages of `origins` call and read us; nothing if there are none.

    Cookies and passwords that a browser holds are never used: such a page sends its key itself.
    """
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=tuple(origins),
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("Authorization", "X-Request-Id"),
            expose_headers=("X-Request-Id", "Retry-After"),
            allow_private_network=True,
        )
    ]
