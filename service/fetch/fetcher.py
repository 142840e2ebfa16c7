"""The thread that fetches pictures, and the door to it from the event loop of the server.

Fetching has an event loop of its own, because a server elsewhere decides how much work it is: a
body in pieces of one byte, a handshake, redirects. None of this may hold up other requests.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, NoReturn, Protocol, TypeVar

import httpcore

from service.errors import ApiError, invalid
from service.fetch.download import Budget, Downloader, Rules
from service.fetch.network import Network
from service.fetch.urls import FetchError, failed
from service.jobs import DeadlineError, PoolClosedError, QueueFullError
from service.settings import Settings

T = TypeVar("T")


class Fetcher(Protocol):
    """Whoever gives pictures for urls."""

    @property
    def waiting(self) -> int:
        """Urls that are fetched, or wait to be."""
        ...

    async def fetch(self, url: str, *, param: str, deadline_s: float, budget: Budget) -> bytes:
        """The bytes that a url gives, not yet known to be a picture.

        Cancelling the call ends the download.

        Args:
            url: http or https, from whoever sent the request.
            param: the field that held it, for messages.
            deadline_s: on the clock of `time.monotonic`.
            budget: of the request.

        Raises:
            ApiError: 422 `image_url_refused` for a url that is not followed, `image_url_failed`
                for one that gave nothing, `not_supported` where urls are switched off.
            QueueFullError: at once, if too many wait already.
            DeadlineError: at the deadline.
            PoolClosedError: if the service is ending.
        """
        ...

    def close(self) -> None:
        """Fetch no more."""
        ...

    def join(self, *, until_s: float) -> bool:
        """After `close`, wait for the end; whether it has come."""
        ...


def no_image_urls(param: str) -> ApiError:
    """The answer to a url where urls are switched off."""
    message = (
        f"{param}: pictures are not fetched by url on this server; send the picture itself in "
        "base64, or start the server with COTS_IMAGE_URLS=true"
    )
    return invalid("not_supported", message, param=param)


class NoImageUrls:
    """The fetcher of a server that takes no urls."""

    waiting = 0

    async def fetch(self, url: str, *, param: str, deadline_s: float, budget: Budget) -> NoReturn:
        """Refuse."""
        raise no_image_urls(param)

    def close(self) -> None:
        """Nothing to end."""

    def join(self, *, until_s: float) -> bool:
        """It has ended."""
        return True


class ImageFetcher:
    """Fetches pictures within the limits of the settings.

    Args:
        settings: the limits, named `image_url_...`.
        network: how names and addresses are reached; closed with the fetcher.
    """

    def __init__(self, settings: Settings, network: Network) -> None:
        self._timeout_s = settings.image_url_timeout_s
        self._capacity = settings.queue_size
        self._waiting = 0
        self._slots = asyncio.Semaphore(settings.image_url_fetches)
        self._network = network
        rules = Rules(frozenset(settings.image_url_ports), settings.image_url_max_bytes)
        self._downloader = Downloader(network, httpcore.default_ssl_context(), rules)
        self._thread = _LoopThread("fetch")

    @property
    def waiting(self) -> int:
        """Urls that are fetched, or wait to be."""
        return self._waiting

    async def fetch(self, url: str, *, param: str, deadline_s: float, budget: Budget) -> bytes:
        """See `Fetcher.fetch`."""
        if self._waiting >= self._capacity:
            raise QueueFullError(f"fetch: {self._capacity} urls are waiting already")
        self._waiting += 1
        waiting = asyncio.timeout(max(0.0, deadline_s - time.monotonic()))
        try:
            async with waiting:
                return await self._thread.run(self._download(url, budget))
        except FetchError as err:
            raise invalid(err.code, f"{param}: {err}", param=param) from err
        except TimeoutError as err:
            if not waiting.expired():
                raise
            raise DeadlineError("fetch: not finished before the deadline") from err
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """See `Fetcher.close`."""
        self._thread.close()
        self._network.close()

    def join(self, *, until_s: float) -> bool:
        """See `Fetcher.join`."""
        return self._thread.join(until_s=until_s)

    async def _download(self, url: str, budget: Budget) -> bytes:
        async with self._slots:
            whole = asyncio.timeout(self._timeout_s)
            try:
                async with whole:
                    return await self._downloader.download(url, budget)
            except TimeoutError as err:
                if not whole.expired():
                    raise
                message = f"the picture did not arrive within {self._timeout_s:g} s"
                raise failed(f"{message}; send the picture itself") from err


class _LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._closed = asyncio.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, job: Coroutine[Any, Any, T]) -> T:
        """Run `job` there; cancelling the call cancels it.

        Raises:
            PoolClosedError: if the thread ends before the job does.
        """
        if self._is_closed:
            job.close()
            raise _closed()
        running = asyncio.run_coroutine_threadsafe(job, self._loop)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            waiter = asyncio.current_task()
            if self._is_closed and waiter is not None and not waiter.cancelling():
                raise _closed() from None  # nobody cancelled the call: the job was, by `close`
            raise

    def close(self) -> None:
        """Cancel what runs, and end. From the thread that calls `run`, as nothing is locked."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.call_soon_threadsafe(self._closed.set)

    def join(self, *, until_s: float) -> bool:
        """Wait for the end; whether it has come."""
        self._thread.join(max(0.0, until_s - time.monotonic()))
        return not self._thread.is_alive()

    def _work(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_closed())

    async def _until_closed(self) -> None:
        await self._closed.wait()


def _closed() -> PoolClosedError:
    return PoolClosedError("fetch: shutting down")
