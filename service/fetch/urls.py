"""Which urls are followed: the rules that need no network, and the two ways to fail."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import httpx

from cots_model.errors import CotsError

MAX_URL_CHARS = 8192
_DEFAULT_PORTS = {"http": 80, "https": 443}


class FetchError(CotsError):
    """A picture could not be had by its url.

    Its message is for whoever wrote the url: it tells no address, and nothing of a network that
    they cannot see themselves.

    Attributes:
        code: `image_url_refused` for a url that is not followed, `image_url_failed` for one that
            gave no picture.
    """

    def __init__(
        self, code: Literal["image_url_refused", "image_url_failed"], message: str
    ) -> None:
        super().__init__(message)
        self.code = code


def refused(message: str) -> FetchError:
    """A url that is not followed."""
    return FetchError("image_url_refused", message)


def failed(message: str) -> FetchError:
    """A url that was followed and gave no picture."""
    return FetchError("image_url_failed", message)


def check_url(text: str, *, ports: Collection[int]) -> httpx.URL:
    """Parse a url and hold it against the rules.

    Args:
        text: an absolute url.
        ports: TCP ports that may be connected to.

    Raises:
        FetchError: if it is not http or https, has no host, carries credentials, or names another
            port.
    """
    if len(text) > MAX_URL_CHARS:
        raise refused(f"the url has {len(text):,} characters; at most {MAX_URL_CHARS:,} are taken")
    try:
        return _checked(httpx.URL(text), ports)
    except (httpx.InvalidURL, ValueError) as err:
        raise refused("not a url; accepted: https://example.org/picture.jpg") from err


def check_redirect(url: httpx.URL, location: bytes, *, ports: Collection[int]) -> httpx.URL:
    """The url that a redirect leads to, held against the same rules.

    Raises:
        FetchError: as `check_url` does, and for a step from https to http.
    """
    no_url = failed("the server redirects to what is no url; give the picture's own url")
    if not location:
        raise no_url
    try:
        target = url.join(location.decode("ascii"))
    except (httpx.InvalidURL, ValueError) as err:
        raise no_url from err
    if url.scheme == "https" and target.scheme == "http":
        raise refused("the server redirects from https to http; give the picture's own url")
    return check_url(str(target), ports=ports)


def port_of(url: httpx.URL) -> int:
    """The TCP port of a checked url."""
    return _DEFAULT_PORTS[url.scheme] if url.port is None else url.port


def _checked(url: httpx.URL, ports: Collection[int]) -> httpx.URL:
    if url.scheme not in _DEFAULT_PORTS:
        scheme = url.scheme[:20] or "none"
        raise refused(f"the scheme of the url is {scheme}; accepted: http, https")
    if not url.raw_host:
        raise refused("the url names no host; accepted: https://example.org/picture.jpg")
    if url.userinfo:
        raise refused("the url holds a name or a password; none are sent, leave them out")
    if port_of(url) not in ports:
        accepted = ", ".join(str(port) for port in sorted(ports))
        raise refused(f"port {port_of(url)} is not accepted here; accepted: {accepted}")
    return url
