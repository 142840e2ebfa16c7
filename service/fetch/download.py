"""One download: redirects followed by hand, the body capped while it arrives."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpcore
import httpx

from service.fetch.network import Network, PublicOnly
from service.fetch.urls import FetchError, check_redirect, check_url, failed

MAX_REDIRECTS = 3
ACCEPTED_TYPES = frozenset(
    {
        "image/bmp",
        "image/gif",
        "image/jpeg",
        "image/jpg",
        "image/png",
        "image/tiff",
        "image/webp",
        "image/x-ms-bmp",
        "application/octet-stream",  # what stores of files say of all they hold
        "binary/octet-stream",
    }
)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = [
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),
    (b"Connection", b"close"),
    (b"User-Agent", b"cots-retrieval"),
]


@dataclass(frozen=True)
class Rules:
    """What a download may do.

    Attributes:
        ports: TCP ports that may be connected to.
        max_bytes: largest body.
    """

    ports: frozenset[int]
    max_bytes: int


class Budget:
    """Bytes that the pictures of one request may have together, counted as each is complete.

    What fails or is too large for itself counts nothing: it takes no room from the others. It is
    for the downloads of one event loop.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left_bytes = max_bytes

    def take(self, size_bytes: int) -> None:
        """A picture is complete; FetchError if there is no room for it."""
        if size_bytes > self._left_bytes:
            most = self._max_bytes
            message = f"the pictures of the request are together larger than {most:,} bytes"
            raise failed(f"{message}; send fewer, or smaller ones")
        self._left_bytes -= size_bytes


class Downloader:
    """Downloads pictures; no cookies, no credentials, no proxies, no connection used twice."""

    def __init__(self, network: Network, tls: ssl.SSLContext, rules: Rules) -> None:
        self._backend = PublicOnly(network)
        self._tls = tls
        self._rules = rules

    async def download(self, text: str, budget: Budget) -> bytes:
        """The body of a url, after at most `MAX_REDIRECTS` redirects.

        Args:
            text: the url.
            budget: of the request.

        Raises:
            FetchError: if the url or one it redirects to is not accepted, or does not give what
                may be a picture.
        """
        url = check_url(text, ports=self._rules.ports)
        for _ in range(1 + MAX_REDIRECTS):
            answer = await self._get(url, budget)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise failed(f"more than {MAX_REDIRECTS} redirects; give the picture's own url")

    async def _get(self, url: httpx.URL, budget: Budget) -> bytes | httpx.URL:
        """The body, or where a redirect leads."""
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        headers = [(b"Host", url.netloc), *_HEADERS]
        pool = httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=self._backend)
        try:
            async with pool, pool.stream("GET", target, headers=headers) as response:
                if response.status in _REDIRECTS:
                    location = _header(response, b"location")
                    return check_redirect(url, location, ports=self._rules.ports)
                return await self._read(response, budget)
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as err:
            message = "the server broke off, or does not speak HTTP as it should; try another url"
            raise failed(message) from err

    async def _read(self, response: httpcore.Response, budget: Budget) -> bytes:
        if response.status != 200:
            raise failed(f"the server answered with status {response.status}; 200 is needed")
        kind = _header(response, b"content-type").partition(b";")[0].strip().lower()
        shown = kind.decode("ascii", "replace")[:60]
        if shown not in ACCEPTED_TYPES:
            message = f"the server sent the content type {shown!r}; accepted: the type of a picture"
            raise failed(f"{message}, such as image/jpeg")
        length = _header(response, b"content-length")
        if length.isdigit() and int(length[:20]) > self._rules.max_bytes:
            raise self._too_large()
        if _header(response, b"content-encoding").strip().lower() not in (b"", b"identity"):
            message = "the server compressed the picture, though it was asked not to"
            raise failed(f"{message}; give the url of a server that does not")
        return await self._collect(response.aiter_stream(), budget)

    async def _collect(self, chunks: AsyncIterator[bytes], budget: Budget) -> bytes:
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            if len(body) > self._rules.max_bytes:
                raise self._too_large()
        budget.take(len(body))
        return bytes(body)

    def _too_large(self) -> FetchError:
        most = self._rules.max_bytes
        return failed(f"the picture is larger than {most:,} bytes; give a smaller one")


def _header(response: httpcore.Response, name: bytes) -> bytes:
    return next((value for key, value in response.headers if key.lower() == name), b"")
