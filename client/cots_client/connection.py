"""Which server, with which key: from arguments, else from the environment."""

from __future__ import annotations

import os
import re

import httpx

from cots_client.errors import InputError
from cots_client.version import __version__

DEFAULT_URL = "http://127.0.0.1:8000"

_EXAMPLE = f"give something like {DEFAULT_URL}"


def server_url(given: str | None) -> httpx.URL:
    """Address of the server: what is given, else `COTS_URL`, else this machine.

    Raises:
        InputError: if it is none, or holds what does not belong there; secrets are not repeated.
    """
    value = given or os.environ.get("COTS_URL") or DEFAULT_URL
    try:
        url = httpx.URL(value)
    except (httpx.InvalidURL, TypeError):
        raise InputError(f"base_url is no address; {_EXAMPLE}") from None  # it may hold a key
    if url.userinfo or "@" in value:
        raise InputError("base_url holds a name or a password; give the key as api_key")
    if not url.host:
        raise InputError(f"base_url has no host; {_EXAMPLE}")
    place = f"base_url is at {url.scheme}://{url.host}"
    if url.scheme not in ("http", "https"):
        raise InputError(f"{place}; {_EXAMPLE}")
    if url.query or url.fragment:
        raise InputError(f"{place} with more than a path; leave out what follows ? or #")
    if url.path.rstrip("/").endswith("/v1"):
        raise InputError(f"{place} and ends in /v1; leave out /v1, which the client adds")
    return url


def request_headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request, with the key that is given, else that of `COTS_API_KEY`.

    An empty key is none, also where the environment has one.

    Raises:
        InputError: for a key that no header can carry.
    """
    headers = {"User-Agent": f"cots-client/{__version__}"}
    key = os.environ.get("COTS_API_KEY", "") if api_key is None else api_key
    if not key:
        return headers
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise InputError("api_key has blanks, line ends or signs beyond ASCII; give the key alone")
    return {**headers, "Authorization": f"Bearer {key}"}
