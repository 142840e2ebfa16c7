"""Searches behind their queue: what is asked of a gallery at the same time is one search.

Scores are those of each query alone (`exact_scores`); only the reading of the vectors is shared.

Shape letters: Q queries, E dimensions.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cots_model.encoder import Vectors
from index_builder.filter import Filter, FilterError
from index_builder.gallery import Gallery
from index_builder.search import Hit, search_gallery
from service.errors import ApiError, invalid
from service.hits import hit_body
from service.jobs import DeadlineError, Done
from service.schemas import HitBody, SearchOptions
from service.worker import WorkerPool

Found = list[list[HitBody]]
"""The hits of each query of a job."""


@dataclass(frozen=True)
class SearchJob:
    """Queries to a gallery.

    Attributes:
        gallery: the version to search.
        query_QE: `[Q,E]` float32 unit vectors.
        options: what is asked for.
        where: the parsed filter of the options.
        similarity: cosine from which on two hits are one; None to keep all.
        deadline_s: on the clock of `time.monotonic`.
    """

    gallery: Gallery
    query_QE: Vectors
    options: SearchOptions
    where: Filter | None
    similarity: float | None
    deadline_s: float

    @property
    def num_hits(self) -> int:
        """Most hits that have to be found."""
        return len(self.query_QE) * (self.options.k + self.options.offset)

    def asks_for(self) -> tuple[object, ...]:
        """Jobs that are equal in this can be one search."""
        options = self.options
        return (
            id(self.gallery),
            options.k,
            options.offset,
            options.min_score,
            options.rank_by,
            "frames" in options.include,
            self.where and self.where.key,
            self.similarity,
        )


class Searcher:
    """Threads that search, each taking all waiting jobs that can be one search."""

    def __init__(
        self,
        *,
        threads: int,
        capacity: int,
        max_hits: int,
        on_batch: Callable[[str, int], None],
    ) -> None:
        """Start the threads.

        Args:
            threads: how many.
            capacity: jobs that may wait.
            max_hits: most hits that jobs which are one search may ask for; a larger job goes alone.
            on_batch: told `search` and the number of queries of each search.
        """
        self._on_batch = on_batch
        self._pool: WorkerPool[SearchJob | None, Found] = WorkerPool(
            "search",
            self._search,
            capacity=capacity,
            threads=threads,
            max_batch=max_hits,
            kind=lambda job: None if job is None else job.asks_for(),
            size=lambda job: 0 if job is None else job.num_hits,
        )

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._pool)

    @property
    def longest_s(self) -> float:
        """See `WorkerPool.longest_s`."""
        return self._pool.longest_s

    async def run(self, job: SearchJob) -> Done[Found]:
        """Search: the hits of each query of the job, in order.

        Raises:
            ApiError: 422 if the filter does not fit the gallery.
            CotsError: what `search_gallery` and `WorkerPool.run` raise.
        """
        return await self._pool.run(job, deadline_s=job.deadline_s)

    async def probe(self, *, timeout_s: float) -> None:
        """Have a thread do nothing, ahead of all that waits.

        Raises:
            DeadlineError: if no thread comes to it in time.
        """
        await self._pool.run(None, deadline_s=time.monotonic() + timeout_s, urgent=True)

    def close(self) -> None:
        """Take no more jobs."""
        self._pool.close()

    def join(self, *, until_s: float) -> bool:
        """Wait for the threads to end; see `WorkerPool.join`."""
        return self._pool.join(until_s=until_s)

    def _search(self, jobs: Sequence[SearchJob | None]) -> list[Found]:
        asked = [job for job in jobs if job is not None]
        if not asked:
            return [[] for _ in jobs]
        query_QE = np.concatenate([job.query_QE for job in asked])
        self._on_batch("search", len(query_QE))
        due_s = max(job.deadline_s for job in asked)
        hits = iter(_search_together(asked[0], query_QE, due_s))

        def bodies(job: SearchJob) -> list[HitBody]:
            _check_deadline(due_s)
            return _hit_bodies(job.gallery, next(hits), job.options)

        return [[bodies(job) for _ in job.query_QE] for job in asked]


def _search_together(job: SearchJob, query_QE: Vectors, deadline_s: float) -> list[list[Hit]]:
    """What `job` asks for, for all queries; ends soon after the deadline."""
    options = job.options
    try:
        return search_gallery(
            job.gallery,
            query_QE,
            k=options.k,
            offset=options.offset,
            min_score=options.min_score,
            where=job.where,
            distinct=job.similarity,
            rank_by=options.rank_by,
            with_frames="frames" in options.include,
            on_block=functools.partial(_check_deadline, deadline_s),
        )
    except FilterError as err:
        raise invalid_filter(err) from err


def invalid_filter(err: FilterError) -> ApiError:
    """A 422 for a filter that cannot be used."""
    return invalid("invalid_filter", str(err), param=err.place)


def _check_deadline(deadline_s: float) -> None:
    if time.monotonic() >= deadline_s:
        raise DeadlineError("search: not finished before the deadline")


def _hit_bodies(gallery: Gallery, hits: Sequence[Hit], options: SearchOptions) -> list[HitBody]:
    embeddings: list[list[float] | None] = [None] * len(hits)
    if "embedding" in options.include:  # all at once: they may be on another machine
        embeddings = gallery.vectors.rows(np.array([hit.row for hit in hits], np.int64)).tolist()
    has_metadata = "metadata" in options.include
    return [
        hit_body(gallery.name, hit, metadata=has_metadata, embedding=embedding)
        for hit, embedding in zip(hits, embeddings, strict=True)
    ]
