"""Queries that name pictures by url: the pictures are fetched before anything is decoded."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from service.errors import ApiError, invalid
from service.fetch.download import Budget
from service.fetch.fetcher import Fetcher
from service.queries import Part

Queries = Sequence[tuple[Part, ...] | ApiError]


async def fetch_pictures(
    queries: Queries, fetcher: Fetcher, *, most: int, total_bytes: int, deadline_s: float
) -> Queries:
    """Put the bytes of pictures in the place of their urls.

    Args:
        queries: of one request; an entry that failed already stays as it is.
        fetcher: fetches.
        most: urls accepted in one request.
        total_bytes: that their pictures may have together; the one that goes beyond fails.
        deadline_s: on the clock of `time.monotonic`.

    Returns:
        The queries in order; one whose url gives no picture is the error of that url.

    Raises:
        ApiError: 422 if there are too many urls.
        QueueFullError, DeadlineError, PoolClosedError: see `Fetcher.fetch`.
    """
    named = [part for parts in queries if isinstance(parts, tuple) for part in parts if _url(part)]
    if not named:
        return queries
    if len(named) > most:
        message = f"the request names {len(named)} pictures by url; at most {most} are accepted"
        raise invalid(
            "image_url_count", f"{message}; send fewer", param=named[most].field("image_url")
        )
    budget = Budget(total_bytes)
    running = [asyncio.create_task(_fetch(part, fetcher, deadline_s, budget)) for part in named]
    try:
        fetched = await asyncio.gather(*running)
    finally:
        for task in running:  # the others have no use after the first that fails the request
            task.cancel()
    found = {part.param: data for part, data in zip(named, fetched, strict=True)}
    return [q if isinstance(q, ApiError) else _with_pictures(q, found) for q in queries]


def _url(part: Part) -> str | None:
    return part.spec.image_url if part.file is None else None


async def _fetch(
    part: Part, fetcher: Fetcher, deadline_s: float, budget: Budget
) -> bytes | ApiError:
    assert part.spec.image_url is not None
    url, param = part.spec.image_url, part.field("image_url")
    try:
        return await fetcher.fetch(url, param=param, deadline_s=deadline_s, budget=budget)
    except ApiError as err:  # one bad url in a batch fails alone
        return err


def _with_pictures(
    parts: tuple[Part, ...], found: dict[str, bytes | ApiError]
) -> tuple[Part, ...] | ApiError:
    filled = []
    for part in parts:
        data = found.get(part.param)
        if isinstance(data, ApiError):
            return data
        filled.append(part if data is None else dataclasses.replace(part, file=data))
    return tuple(filled)
