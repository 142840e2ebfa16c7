"""From the checked queries of a request to unit vectors, through the threads of the service."""

from __future__ import annotations

import functools

from index_builder.gallery import Gallery
from service.errors import ApiError
from service.fetch.parts import Queries, fetch_pictures
from service.queries import Embedded, Timing, encode, prepare
from service.state import Service


async def embed_queries(
    service: Service,
    queries: Queries,
    timing: Timing,
    *,
    gallery: Gallery | None,
    deadline_s: float,
    whole: bool = False,
) -> list[Embedded]:
    """Fetch, decode and encode; every step off the event loop and within the deadline.

    Args:
        service: whose threads and model.
        queries: of one request; an entry that failed already stays failed.
        timing: gets the time spent.
        gallery: that items are of; without it there may be texts and pictures only.
        deadline_s: on the clock of `time.monotonic`.
        whole: a bad query fails the request, before anything is encoded.

    Returns:
        The queries in order, with a unit vector `[E]` for each part, or with an `error`.

    Raises:
        ApiError: 422 if there are too many urls, and the first error if `whole`.
        QueueFullError, DeadlineError: see `WorkerPool.run`.
    """
    settings = service.settings
    pictures = sum(
        part.is_picture for query in queries if not isinstance(query, ApiError) for part in query
    )
    if pictures:
        service.embedder.require_room(pictures, deadline_s=deadline_s)
    asked = await fetch_pictures(
        queries,
        service.fetcher,
        most=settings.max_image_urls,
        total_bytes=settings.image_url_total_bytes,
        deadline_s=deadline_s,
    )
    parsed = [query for query in asked if not isinstance(query, ApiError)]
    preprocess = service.embedder.encoder.preprocess
    job = functools.partial(
        prepare, parsed, gallery, preprocess, settings.max_image_pixels, deadline_s
    )
    if all(part.spec.text is not None for parts in parsed for part in parts):
        prepared = iter(job())  # texts alone: nothing to decode
    else:
        done = await service.decoding.run(job, deadline_s=deadline_s)
        timing.encoded(done)
        prepared = iter(done.value)
    embedded = [
        Embedded((), error=query) if isinstance(query, ApiError) else next(prepared)
        for query in asked
    ]
    if whole and (errors := [query.error for query in embedded if query.error]):
        raise errors[0]
    await encode(embedded, service.embedder, timing, deadline_s=deadline_s)
    return embedded
