"""The client for programs with an event loop of asyncio: `client` with `await`.

What the arguments are is said there, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import httpx

from cots_client import batches, calls
from cots_client.calls import SearchOptions
from cots_client.connection import request_headers, server_url
from cots_client.errors import CotsError, QueryError
from cots_client.exchange import Done, Exchange, RetryPolicy, Wait
from cots_client.pages import Pages
from cots_client.queries import Picture, Query
from cots_client.results import (
    Content,
    Embeddings,
    Gallery,
    Hit,
    Item,
    Model,
    Readiness,
    Reloaded,
    SearchResult,
)
from cots_client.transfer import Transfer, whole_file
from cots_client.wire import Call

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio: the same methods, arguments and errors, to be awaited.

    Tasks of one event loop may share it. Files are read and written as they are by `Client`, by the
    thread of the event loop.

    Args:
        base_url: as of `Client`, like the others.
        api_key: if the server asks for one.
        timeout_s: for one call.
        max_retries: tries after the first.
        transport: instead of the network, such as `httpx.ASGITransport(app)`.
        clock: monotonic seconds.
        sleep: waits so many seconds, awaited.
        uniform: a random number between two.

    Raises:
        InputError: for an address or a key that cannot be one.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._policy = RetryPolicy(
            timeout_s=timeout_s, max_retries=max_retries, clock=clock, uniform=uniform
        )
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            base_url=server_url(base_url), headers=request_headers(api_key), transport=transport
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._http.base_url).rstrip('/')!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def galleries(self) -> tuple[Gallery, ...]:
        """See `Client.galleries`."""
        return await self._run(calls.galleries())

    async def gallery(self, name: str) -> Gallery:
        """See `Client.gallery`."""
        return await self._run(calls.gallery(name))

    async def reload(self, gallery: str, *, timeout_s: float | None = None) -> Reloaded:
        """See `Client.reload`."""
        return await self._run(calls.reload(gallery, timeout_s=timeout_s))

    async def search(
        self,
        gallery: str,
        query: Query,
        *,
        k: int = 10,
        offset: int = 0,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """See `Client.search`."""
        return await self._run(calls.search(gallery, query, k=k, offset=offset, options=options))

    async def search_many(
        self,
        gallery: str,
        queries: Iterable[Query],
        *,
        k: int = 10,
        offset: int = 0,
        batch_size: int = batches.MOST,
        **options: Unpack[SearchOptions],
    ) -> list[SearchResult | QueryError]:
        """See `Client.search_many`; the requests go one after the other."""
        made = batches.Searches(
            gallery, queries, k=k, offset=offset, batch_size=batch_size, options=options
        )
        return made.joined([await self._run(call) for call in made.calls()])

    def iter_hits(
        self,
        gallery: str,
        query: Query,
        *,
        page_size: int = 100,
        limit: int | None = None,
        **options: Unpack[SearchOptions],
    ) -> AsyncIterator[Hit]:
        """See `Client.iter_hits`; for `async for`."""
        return self._iter_pages(
            Pages(gallery, query, page_size=page_size, limit=limit, options=options)
        )

    async def _iter_pages(self, pages: Pages) -> AsyncIterator[Hit]:
        while (call := pages.next()) is not None:
            for hit in pages.take(await self._run(call)):
                yield hit

    async def item(self, gallery: str, item_id: str) -> Item:
        """See `Client.item`."""
        return await self._run(calls.item(gallery, item_id))

    async def thumbnail(
        self, gallery: str, item_id: str, *, size: int = 256, time_s: float | None = None
    ) -> bytes:
        """See `Client.thumbnail`."""
        return await self._run(calls.thumbnail(gallery, item_id, size=size, time_s=time_s))

    async def content(
        self, gallery: str, item_id: str, *, first: int = 0, last: int | None = None
    ) -> Content:
        """See `Client.content`."""
        return await self._run(calls.content(gallery, item_id, first=first, last=last))

    async def download(self, gallery: str, item_id: str, path: str | os.PathLike[str]) -> Path:
        """See `Client.download`."""
        with whole_file(path) as file:
            transfer = Transfer(gallery, item_id, self._policy, file)
            while isinstance(step := await self._transfer(transfer), Wait):
                await self._sleep(step.seconds)
        return Path(path)

    async def embed(
        self,
        inputs: str | Picture | Iterable[str | Picture],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        batch_size: int = batches.MOST,
    ) -> Embeddings:
        """See `Client.embed`."""
        made = batches.embed(inputs, model=model, dimensions=dimensions, batch_size=batch_size)
        return Embeddings.joined([await self._run(call) for call in made])

    async def explain(
        self,
        words: str,
        *,
        gallery: str | None = None,
        item_id: str | None = None,
        image: str | Picture | None = None,
        overlay: bool = False,
        time_s: float | None = None,
        start_layer: int = 0,
    ) -> dict[str, Any]:
        """See `Client.explain`."""
        call = calls.explain(
            words,
            gallery=gallery,
            item_id=item_id,
            picture=image,
            options={"overlay": overlay, "time_s": time_s, "start_layer": start_layer},
        )
        return await self._run(call)

    async def models(self) -> tuple[Model, ...]:
        """See `Client.models`."""
        return await self._run(calls.models())

    async def is_live(self) -> bool:
        """See `Client.is_live`."""
        with contextlib.suppress(CotsError):
            return await self._run(calls.livez())
        return False

    async def is_ready(self) -> bool:
        """See `Client.is_ready`."""
        with contextlib.suppress(CotsError):
            return (await self.readiness()).ready
        return False

    async def readiness(self) -> Readiness:
        """See `Client.readiness`."""
        return await self._run(calls.readyz())

    async def _run(self, call: Call[T]) -> T:
        exchange = Exchange(call, self._policy)
        while isinstance(step := await self._try(exchange), Wait):
            await self._sleep(step.seconds)
        return step.value

    async def _try(self, exchange: Exchange[T]) -> Done[T] | Wait:
        request = exchange.request(self._http)
        try:
            response = await self._http.send(request, stream=True)
            async with contextlib.aclosing(response):
                exchange.begins(response)
                await response.aread()
        except httpx.RequestError as err:
            return exchange.failed(err)
        return exchange.answered(response)

    async def _transfer(self, transfer: Transfer) -> Done[None] | Wait:
        request = transfer.request(self._http)
        try:
            response = await self._http.send(request, stream=True)
            async with contextlib.aclosing(response):
                if not transfer.begins(response):
                    await response.aread()
                    return transfer.answered(response)
                async for chunk in response.aiter_raw():
                    transfer.write(chunk)
                return transfer.ended(response)
        except httpx.RequestError as err:
            return transfer.failed(err)
