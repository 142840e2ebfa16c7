"""One search request, from its checked body to its answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cots_model.encoder import Vectors
from cots_model.faults import describe_cut, shortened
from index_builder.filter import Filter, FilterError, parse_filter
from index_builder.gallery import Gallery
from service.embedding import embed_queries
from service.errors import ApiError, error_body, invalid
from service.queries import Embedded, Part, Timing, combine
from service.schemas import (
    MOST_SCORE,
    HitBody,
    QueryResult,
    SearchOptions,
    SearchResponse,
    TookMs,
    WarningBody,
)
from service.searcher import SearchJob, invalid_filter
from service.settings import Settings
from service.state import Service

Options = TypeVar("Options", bound=SearchOptions)

_HEAVY = frozenset({"embedding", "frames"})
_HEAVY_HITS = 16
"""A hit with its vector or frames takes as much memory as so many without."""


@dataclass(frozen=True)
class Search:
    """What one request asks for; `queries` has one entry unless it is a batch.

    An entry of a batch that could not be parsed is its error.
    """

    gallery: Gallery
    options: SearchOptions
    queries: tuple[tuple[Part, ...] | ApiError, ...]
    batch: bool
    arrived_s: float
    deadline_s: float


def check_options(options: Options, settings: Settings) -> Options:
    """Refuse what is out of bounds; a `k` that was not given is within them.

    What is accepted depends on the settings, so that the models of `service.schemas` cannot tell.

    Raises:
        ApiError: 422 naming the field.
    """
    if "k" not in options.model_fields_set and options.k > settings.max_k:
        options = options.model_copy(update={"k": settings.max_k})
    for name, value, least, most in (
        ("k", options.k, 1, settings.max_k),
        ("offset", options.offset, 0, settings.max_offset),
        ("min_score", options.min_score, -MOST_SCORE, MOST_SCORE),
    ):
        if value is not None and not least <= value <= most:
            message = (
                f"{name} is {shortened(f'{value:,}')}; {least:,.0f} to {most:,.0f} is accepted"
            )
            raise invalid("invalid_value", message, param=name)
    return options


def answer_size(
    options: SearchOptions, gallery: Gallery, num_queries: int, settings: Settings
) -> int:
    """How much the answer to a request is, in hits without vectors.

    Raises:
        ApiError: 422 if it has more vectors than an answer may have.
    """
    num_hits = num_queries * min(options.k, len(gallery))
    heavy = _HEAVY.intersection(options.include)
    if not heavy:
        return num_hits
    if num_hits > settings.max_vectors:
        message = (
            f"include asks for {' and '.join(sorted(heavy))} of {num_hits:,} hits; at most "
            f"{settings.max_vectors:,} of one request have them; ask for fewer queries or hits"
        )
        raise invalid("too_many_vectors", message, param="include")
    return num_hits * _HEAVY_HITS


def check_frames(options: SearchOptions, gallery: Gallery) -> None:
    """Refuse to look at the frames of what has none.

    Raises:
        ApiError: 422 naming the field.
    """
    for name, wanted in (
        ("rank_by", options.rank_by == "frame"),
        ("include", "frames" in options.include),
    ):
        if wanted and gallery.frames is None:
            what = {"rank_by": 'rank_by "frame"', "include": 'include "frames"'}[name]
            message = (
                f"{what} is for videos, and gallery {gallery.name!r} holds "
                f"{gallery.manifest.modality} items; leave it out"
            )
            raise invalid("not_supported", message, param=name)


async def run_search(service: Service, search: Search) -> SearchResponse:
    """Embed, search, collect; every step off the event loop and within the deadline."""
    where = _parse_filter(search.options)
    timing = Timing()
    embedded = await embed_queries(
        service, search.queries, timing, gallery=search.gallery, deadline_s=search.deadline_s
    )
    vectors, errors = _combine_all(embedded)
    model = service.embedder.encoder.name
    results = iter(await _hits(service, search, vectors, where, timing))
    answers = [
        QueryResult(error=error_body(error))
        if error
        else QueryResult(hits=next(results), warnings=_warnings(query, model))
        for query, error in zip(embedded, errors, strict=True)
    ]
    if not search.batch and errors[0] is not None:
        raise errors[0]
    return SearchResponse(
        gallery=search.gallery.name,
        version=search.gallery.version,
        model=model,
        took_ms=_took(timing, search.arrived_s),
        hits=None if search.batch else answers[0].hits,
        warnings=None if search.batch else answers[0].warnings,
        results=answers if search.batch else None,
    )


def _warnings(query: Embedded, model: str) -> list[WarningBody] | None:
    """What of a query was passed over."""

    def told(number: int, cut_at: int) -> WarningBody:
        part = query.parts[number]
        message = describe_cut(part.param, part.spec.text or "", cut_at, model)
        return WarningBody(message=message, param=part.param, code="text_cut")

    return [told(number, cut_at) for number, cut_at in sorted(query.cut_at.items())] or None


def _combine_all(queries: Sequence[Embedded]) -> tuple[list[Vectors], list[ApiError | None]]:
    vectors: list[Vectors] = []
    errors: list[ApiError | None] = []
    for query in queries:
        try:
            vectors.append(combine(query))
            errors.append(None)
        except ApiError as err:
            errors.append(err)
    return vectors, errors


def _parse_filter(options: SearchOptions) -> Filter | None:
    if options.filter is None:
        return None
    try:
        return parse_filter(options.filter)
    except FilterError as err:
        raise invalid_filter(err) from err


async def _hits(
    service: Service,
    search: Search,
    vectors: list[Vectors],
    where: Filter | None,
    timing: Timing,
) -> list[list[HitBody]]:
    if not vectors:
        return []
    similarity = service.settings.duplicate_similarity if search.options.deduplicate else None
    job = SearchJob(
        search.gallery, np.stack(vectors), search.options, where, similarity, search.deadline_s
    )
    done = await service.searching.run(job)
    timing.queue_ms += done.queue_ms
    timing.search_ms += done.work_ms
    return done.value


def _took(timing: Timing, arrived_s: float) -> TookMs:
    return TookMs(
        queue=round(timing.queue_ms, 3),
        encode=round(timing.encode_ms, 3),
        search=round(timing.search_ms, 3),
        total=round((time.monotonic() - arrived_s) * 1000, 3),
    )
