"""Which names a request may call this server by: the guard against DNS rebinding.

A server on loopback trusts whoever reaches it. A web page anywhere can point its own name at
127.0.0.1 and would then read answers as if they were its own; but its requests still carry that
name in `Host`, so names that are not ours are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ApiError, error_response
from service.settings import OPEN_PATHS, is_loopback

_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(?::[0-9]*)?")


class TrustedHosts:
    """Answers 421 unless `Host` is a loopback name or address, or one of `names`.

    `names` None lets every request through. Health checks come under any name.
    """

    def __init__(self, app: ASGIApp, *, names: Collection[str] | None) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or self._names is None or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("host", "")
        name = host_name(given)
        if name in self._names or is_loopback(name):
            await self._app(scope, receive, send)
            return
        message = (
            f"this server is not called {given[:100]!r}; use http://localhost, or add the name to "
            "the setting allowed_hosts (COTS_ALLOWED_HOSTS)"
        )
        await error_response(ApiError(421, "host_not_allowed", message))(scope, receive, send)


def host_name(header: str) -> str:
    """The name or address of a `Host` header, in lower case, without port; empty if malformed."""
    match = _HOST.fullmatch(header.strip())
    if match is None:
        return ""
    return (match["ipv6"] or match["name"]).lower().removesuffix(".")
