"""The way out: names become addresses once, only public ones are connected to.

The check is made on the very address that is given to `connect`, inside the call that opens the
connection. A name that is looked up again, and then has another answer (DNS rebinding), gains
nothing: that answer is checked too, or never used.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import httpcore

from service.fetch.addresses import is_public
from service.fetch.urls import failed, refused
from service.jobs import DeadlineError
from service.worker import WorkerPool

_MAX_ADDRESSES = 4
_CONNECT_S = 2.0
_LOOKUP_S = 30.0


class Network(Protocol):
    """Looking up names and opening connections; both without checking anything."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Numeric addresses of a host; empty if it has none."""
        ...

    async def connect(
        self, address: str, port: int, timeout_s: float
    ) -> httpcore.AsyncNetworkStream:
        """A TCP connection to a numeric address.

        Raises:
            httpcore.ConnectError: if it is refused.
            httpcore.ConnectTimeout: if nobody answers in time.
        """
        ...

    def close(self) -> None:
        """Look up no more names."""
        ...


class SystemNetwork:
    """The network of this machine. Names are looked up in threads: that cannot be interrupted.

    Args:
        threads: lookups at once.
    """

    def __init__(self, *, threads: int) -> None:
        self._tcp = httpcore.AnyIOBackend()
        self._lookups: WorkerPool[tuple[str, int], list[str]] = WorkerPool(
            "resolve", _resolve_all, capacity=threads, threads=threads
        )

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """See `Network.resolve`; a numeric address waits for no name."""
        if numeric := _resolve(host, port, socket.AI_NUMERICHOST):
            return numeric
        deadline_s = time.monotonic() + _LOOKUP_S
        try:
            return (await self._lookups.run((host, port), deadline_s=deadline_s)).value
        except DeadlineError:
            return []

    async def connect(
        self, address: str, port: int, timeout_s: float
    ) -> httpcore.AsyncNetworkStream:
        """See `Network.connect`."""
        return await self._tcp.connect_tcp(address, port, timeout=timeout_s)

    def close(self) -> None:
        """See `Network.close`."""
        self._lookups.close()


def _resolve_all(hosts: Sequence[tuple[str, int]]) -> list[list[str]]:
    return [_resolve(host, port) for host, port in hosts]


def _resolve(host: str, port: int, flags: int = socket.AI_ADDRCONFIG) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, ValueError):  # ValueError: no name at all, such as a label over 63 characters
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class PublicOnly(httpcore.AsyncNetworkBackend):
    """Opens connections for httpcore, to public addresses only."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first public address of `host` that answers.

        Raises:
            FetchError: if it has none, or none answers. A name that does not exist and a name of
                our own network get the same words, so that nobody can tell them apart.
        """
        found = await self._network.resolve(host, port)
        public = [address for address in found if is_public(address)]
        if not public:
            raise refused("the host has no public address; give a url of the public internet")
        for address in public[:_MAX_ADDRESSES]:
            try:
                return await self._network.connect(address, port, timeout_s=_CONNECT_S)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        raise failed("the host does not answer; check the url, or send the picture itself")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is httpcore's
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise refused("the scheme of the url is not accepted; accepted: http, https")
