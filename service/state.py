"""What one running service holds; built once by the lifespan, closed by it."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from fastapi import Request

from cots_model.encoder import Encoder
from service.budget import Budget
from service.encoding import Embedder
from service.explaining import Explaining
from service.fetch import make_fetcher
from service.fetch.fetcher import Fetcher
from service.galleries import Registry
from service.jobs import Done
from service.metrics import GalleryFigures, Metrics
from service.readiness import Readiness
from service.reloading import Reloader
from service.root import find_galleries
from service.searcher import Searcher
from service.settings import CLOSE_S, Settings
from service.thumbnails import ThumbnailCache
from service.worker import WorkerPool

T = TypeVar("T")

LITTLE_HITS = 2000
"""An answer of so many is made on the event loop, and however much others hold."""


@dataclass(frozen=True)
class Resources:
    """What takes long to load: the model and the galleries it can search."""

    encoder: Encoder
    registry: Registry

    @classmethod
    def load(cls, settings: Settings) -> Resources:
        """Load the checkpoint, then every gallery made by it, in a thread that ends with it.

        A thread that has computed keeps helpers for as long as it lives, and OpenMP lets all
        helpers sleep between two products once they are more than the cores. Only the thread that
        computes single queries should have some: one alone then takes a quarter less.

        Raises:
            InputError: if there is no gallery, or the checkpoint or all galleries are unusable.
        """
        loaded: Future[Resources] = Future()

        def load() -> None:
            try:
                loaded.set_result(cls._load(settings))
            except BaseException as err:  # noqa: BLE001 - whatever it is, the one who waits gets it
                loaded.set_exception(err)

        thread = threading.Thread(target=load, name="load", daemon=True)
        thread.start()
        try:
            return loaded.result()
        finally:
            if loaded.done():  # or it is interrupted, and does not wait
                thread.join()

    @classmethod
    def _load(cls, settings: Settings) -> Resources:
        find_galleries(settings.galleries)  # a wrong folder is said before the model is loaded
        encoder = Encoder.load(
            settings.checkpoint, device=settings.device, precision=settings.precision
        )
        registry = Registry.open(
            settings.galleries,
            expected_fingerprint=encoder.fingerprint,
            device=settings.device,
            probe_QE=encoder.encode_texts(["a probe"]),
            memory_budget_bytes=settings.memory_budget_bytes,
        )
        return cls(encoder, registry)


class CallPool:
    """Threads that run any function, one job each."""

    def __init__(self, name: str, *, threads: int, capacity: int) -> None:
        self._pool: WorkerPool[Callable[[], Any], Any] = WorkerPool(
            name, _call_all, capacity=capacity, threads=threads
        )

    async def run(self, job: Callable[[], T], *, deadline_s: float) -> Done[T]:
        """Run `job` in a thread. Raises what it raises, and what `WorkerPool.run` does."""
        return cast("Done[T]", await self._pool.run(job, deadline_s=deadline_s))

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._pool)

    @property
    def longest_s(self) -> float:
        """See `WorkerPool.longest_s`."""
        return self._pool.longest_s

    async def probe(self, *, timeout_s: float) -> None:
        """Have a thread do nothing, ahead of all that waits.

        Raises:
            DeadlineError: if no thread comes to it in time.
        """
        deadline_s = time.monotonic() + timeout_s
        await self._pool.run(lambda: None, deadline_s=deadline_s, urgent=True)

    def close(self) -> None:
        """Take no more jobs."""
        self._pool.close()

    def join(self, *, until_s: float) -> bool:
        """Wait for the threads to end; see `WorkerPool.join`."""
        return self._pool.join(until_s=until_s)


def _call_all(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    return [job() for job in jobs]


class Service:
    """The parts of a running service.

    Attributes:
        settings: the settings it was made with.
        registry: its galleries.
        embedder: the model behind its queue.
        decoding: threads for pictures, items and originals.
        videos: threads for what reads videos, which can take long, so that nothing else waits.
        searching: threads for indexes.
        answers: what those in the making hold, in hits.
        explaining: the thread that explains what the model finds.
        fetcher: gets pictures by url, if the settings allow it.
        reloader: the thread that loads new versions.
        readiness: whether it should get traffic.
        thumbnails: thumbnails already made.
        metrics: what is counted.
    """

    def __init__(
        self, settings: Settings, resources: Resources, metrics: Metrics | None = None
    ) -> None:
        pool = functools.partial(CallPool, capacity=settings.queue_size)
        self.settings = settings
        self.registry = resources.registry
        self.metrics = metrics or Metrics()
        self.embedder = Embedder(
            resources.encoder,
            capacity=settings.queue_size,
            max_batch=settings.encode_batch,
            max_wait_s=settings.encode_wait_ms / 1000,
            cached_texts=settings.cached_texts,
            on_batch=self.metrics.batch,
        )
        self.decoding = pool("decode", threads=settings.decode_threads)
        self.videos = pool("video", threads=settings.decode_threads)
        self.searching = Searcher(
            threads=settings.search_threads,
            capacity=settings.queue_size,
            max_hits=settings.search_batch_hits,
            on_batch=self.metrics.batch,
        )
        self.answers = Budget(settings.max_hits_together, little=LITTLE_HITS)
        self.explaining = Explaining(resources.encoder, capacity=settings.queue_size)
        self.fetcher = make_fetcher(settings)
        self.reloader = Reloader(self.registry, interval_s=settings.reload_interval_s)
        self.thumbnails = ThumbnailCache(settings.thumbnail_cache_bytes)
        self.readiness = Readiness(
            {"search": self.searching, "encode": self.embedder, "explain": self.explaining},
            {"decode": self.decoding, "video": self.videos},
            interval_s=settings.probe_interval_s,
            max_age_s=settings.probe_max_age_s,
            max_job_s=settings.probe_max_age_s + settings.deadline_s,
        )

    def refresh_metrics(self) -> None:
        """Take down the figures that are looked up, not counted."""
        pools: dict[str, Embedder | CallPool | Searcher | Explaining | Fetcher] = {
            "encode": self.embedder,
            "decode": self.decoding,
            "video": self.videos,
            "search": self.searching,
            "explain": self.explaining,
            "fetch": self.fetcher,
        }
        self.metrics.refresh(
            waiting={name: pool.waiting for name, pool in pools.items()},
            ready=not self.readiness.reasons(),
            galleries=self._gallery_figures(),
            root_up=self.registry.root_fault is None,
        )

    def _gallery_figures(self) -> dict[str, GalleryFigures]:
        return {
            status.name: GalleryFigures(
                status.version, status.count, status.num_loaded, status.num_refused
            )
            for status in self.registry.statuses()
        }

    def close(self, *, timeout_s: float = CLOSE_S) -> bool:
        """Let the threads end; whether they did. One that hangs is left behind."""
        pools = (
            self.reloader,
            self.fetcher,
            self.embedder,
            self.decoding,
            self.videos,
            self.searching,
            self.explaining,
        )
        for pool in pools:
            pool.close()
        until_s = time.monotonic() + timeout_s
        return all(pool.join(until_s=until_s) for pool in pools)


async def get_service(request: Request) -> Service:
    """The service of the running application (a FastAPI dependency)."""
    return cast("Service", request.app.state.service)
