"""The client for programs without an event loop; `async_client` is the same with one.

Requests, answers and retries are in the other modules: here is sent, and waited.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
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


class Client:
    """A client of one server; threads may share it.

    Every method may raise `TransportError`, `APIError` and `AnswerError`, and `InputError` for what
    cannot be sent. Calls that a full or restarting server turns away, and connections that break,
    are tried again within `timeout_s`.

    Args:
        base_url: of the server; else `COTS_URL`, else `http://127.0.0.1:8000`.
        api_key: if the server asks for one; else `COTS_API_KEY`; an empty one is none.
        timeout_s: for one call, with all its tries and waits; of a download, for each pause.
        max_retries: tries after the first.
        transport: instead of the network, as of httpx.
        clock: monotonic seconds.
        sleep: waits so many seconds.
        uniform: a random number between two, for the waits.

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
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._policy = RetryPolicy(
            timeout_s=timeout_s, max_retries=max_retries, clock=clock, uniform=uniform
        )
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=server_url(base_url), headers=request_headers(api_key), transport=transport
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._http.base_url).rstrip('/')!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def galleries(self) -> tuple[Gallery, ...]:
        """The galleries that are served, by name."""
        return self._run(calls.galleries())

    def gallery(self, name: str) -> Gallery:
        """One gallery."""
        return self._run(calls.gallery(name))

    def reload(self, gallery: str, *, timeout_s: float | None = None) -> Reloaded:
        """Have the server load the version that is published, and serve it; returns when it does.

        Args:
            gallery: its name.
            timeout_s: instead of the client's: a large gallery takes a while to load.
        """
        return self._run(calls.reload(gallery, timeout_s=timeout_s))

    def search(
        self,
        gallery: str,
        query: Query,
        *,
        k: int = 10,
        offset: int = 0,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """The hits of one query.

        Args:
            gallery: to search.
            query: words; a picture as `Path`, bytes or open file; `text()`, `image()`,
                `image_url()`, `item()` or `embedding()`; or a list of these, with weights.
            k: hits wanted.
            offset: of the first hit.
            options: see `SearchOptions`.
        """
        return self._run(calls.search(gallery, query, k=k, offset=offset, options=options))

    def search_many(
        self,
        gallery: str,
        queries: Iterable[Query],
        *,
        k: int = 10,
        offset: int = 0,
        batch_size: int = batches.MOST,
        **options: Unpack[SearchOptions],
    ) -> list[SearchResult | QueryError]:
        """The results of many queries in their order, in as few requests as they fit in.

        A query that the server refuses, or whose picture cannot be read, has its `QueryError` in
        the place of its result. What fails a whole request is raised, and what is no query.

        Args:
            gallery: to search.
            queries: each as of `search`; they are taken as the requests are made.
            k: as of `search`, for each query, like `offset`.
            offset: see `k`.
            batch_size: most queries of one request; the server's `max_queries`.
            options: see `SearchOptions`.
        """
        made = batches.Searches(
            gallery, queries, k=k, offset=offset, batch_size=batch_size, options=options
        )
        return made.joined([self._run(call) for call in made.calls()])

    def iter_hits(
        self,
        gallery: str,
        query: Query,
        *,
        page_size: int = 100,
        limit: int | None = None,
        **options: Unpack[SearchOptions],
    ) -> Iterator[Hit]:
        """All hits, the best first; pages are fetched as the hits are taken.

        Args:
            gallery: to search.
            query: as of `search`.
            page_size: hits of one request.
            limit: hits in all; without it, beyond the server's `max_offset` there is an
                `InvalidRequestError`.
            options: see `SearchOptions`.

        Raises:
            GalleryChangedError: while they are taken, if the gallery gets a new version.
        """
        return self._iter_pages(
            Pages(gallery, query, page_size=page_size, limit=limit, options=options)
        )

    def _iter_pages(self, pages: Pages) -> Iterator[Hit]:
        while (call := pages.next()) is not None:
            yield from pages.take(self._run(call))

    def item(self, gallery: str, item_id: str) -> Item:
        """What is known of an item."""
        return self._run(calls.item(gallery, item_id))

    def thumbnail(
        self, gallery: str, item_id: str, *, size: int = 256, time_s: float | None = None
    ) -> bytes:
        """A JPEG of an item, its longer side `size` pixels at most.

        Args:
            gallery: of the item.
            item_id: of it.
            size: 16 to 1024, if the server is not set otherwise.
            time_s: of a video: which frame, such as a hit's `moment.time_s`.
        """
        return self._run(calls.thumbnail(gallery, item_id, size=size, time_s=time_s))

    def content(
        self, gallery: str, item_id: str, *, first: int = 0, last: int | None = None
    ) -> Content:
        """The original in memory: all of it, or bytes `first` to `last`, both included."""
        return self._run(calls.content(gallery, item_id, first=first, last=last))

    def download(self, gallery: str, item_id: str, path: str | os.PathLike[str]) -> Path:
        """Write the original to a file, which appears only when it is whole.

        A connection that breaks is made anew and goes on where it was.

        An existing file is replaced and keeps its mode, a link leads to what it names.

        Raises:
            OSError: if the file cannot be written.
        """
        with whole_file(path) as file:
            transfer = Transfer(gallery, item_id, self._policy, file)
            while isinstance(step := self._transfer(transfer), Wait):
                self._sleep(step.seconds)
        return Path(path)

    def embed(
        self,
        inputs: str | Picture | Iterable[str | Picture],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        batch_size: int = batches.MOST,
    ) -> Embeddings:
        """Unit vectors of texts, or of pictures; one input the server refuses fails them all.

        Args:
            inputs: texts, or pictures as `Path`, bytes, open file or `image()`; one or many.
            model: refused if it is not the served one.
            dimensions: refused if it is not the model's own.
            batch_size: most inputs of one request; the server's `max_queries`.

        Raises:
            ModelChangedError: if the server got another model between two requests.
        """
        made = batches.embed(inputs, model=model, dimensions=dimensions, batch_size=batch_size)
        return Embeddings.joined([self._run(call) for call in made])

    def explain(
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
        """Which word is where in a picture, as the server answers `POST /v1/explain`.

        Args:
            words: a text.
            gallery: of the item, if it is one.
            item_id: of the item, if it is one.
            image: else the picture.
            overlay: whether each word comes with a PNG of the picture under its map, in base64.
            time_s: of a video the frame; else the one in the middle.
            start_layer: first layer of the image tower that counts.
        """
        call = calls.explain(
            words,
            gallery=gallery,
            item_id=item_id,
            picture=image,
            options={"overlay": overlay, "time_s": time_s, "start_layer": start_layer},
        )
        return self._run(call)

    def models(self) -> tuple[Model, ...]:
        """The model that is served."""
        return self._run(calls.models())

    def is_live(self) -> bool:
        """Whether the server answers at all."""
        with contextlib.suppress(CotsError):
            return self._run(calls.livez())
        return False

    def is_ready(self) -> bool:
        """Whether the server can do its work; `readiness` says why not."""
        with contextlib.suppress(CotsError):
            return self.readiness().ready
        return False

    def readiness(self) -> Readiness:
        """Whether the server can do its work, with the reasons."""
        return self._run(calls.readyz())

    def _run(self, call: Call[T]) -> T:
        exchange = Exchange(call, self._policy)
        while isinstance(step := self._try(exchange), Wait):
            self._sleep(step.seconds)
        return step.value

    def _try(self, exchange: Exchange[T]) -> Done[T] | Wait:
        request = exchange.request(self._http)
        try:
            response = self._http.send(request, stream=True)
            with contextlib.closing(response):
                exchange.begins(response)
                response.read()
        except httpx.RequestError as err:
            return exchange.failed(err)
        return exchange.answered(response)

    def _transfer(self, transfer: Transfer) -> Done[None] | Wait:
        request = transfer.request(self._http)
        try:
            response = self._http.send(request, stream=True)
            with contextlib.closing(response):
                if not transfer.begins(response):
                    response.read()
                    return transfer.answered(response)
                for chunk in response.iter_raw():
                    transfer.write(chunk)
                return transfer.ended(response)
        except httpx.RequestError as err:
            return transfer.failed(err)
