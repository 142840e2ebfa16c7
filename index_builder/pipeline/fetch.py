"""Originals that lie elsewhere, fetched by threads ahead of decoding.

A bounded number of objects and bytes is under way. An object that stalls is given up after a limit:
its thread is left behind and another takes its place, so that it holds up none but itself.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from cots_model.errors import InputError
from index_builder.content import ContentError, Location, Stamp, read_location
from index_builder.location import is_url
from index_builder.sources.entry import Candidate, Skip

LARGEST_BYTES = 64 * 1024 * 1024
"""Larger objects are opened and read by the decoding process itself, piece by piece."""

_UNKNOWN_BYTES = 4 * 1024 * 1024
_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.5
_MAX_STALLED = 256
_TRANSIENT = ("unreadable", "timeout")
_DENIED = (PermissionError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Fetched:
    """The whole content of an original."""

    data: bytes
    stamp: Stamp


@dataclass(frozen=True)
class Arrival:
    """What came of one object.

    Attributes:
        number: the entry's place in the source.
        candidate: the entry.
        value: its content; `None` if it is so large that the decoding process must open it; or why
            it is skipped.
    """

    number: int
    candidate: Candidate
    value: Fetched | Skip | None


@dataclass(eq=False)
class _Job:
    number: int
    candidate: Candidate
    started_s: float | None = None
    given_up: bool = False
    finished: bool = False
    value: Fetched | Skip | None = None


@dataclass
class _Shared:
    """What the threads and their owner pass to each other."""

    jobs: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue)
    done: deque[_Job] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)


def is_remote(location: Location) -> bool:
    """Whether an original must be fetched, being named by a url."""
    return is_url(location.path)


class Fetcher:
    """Threads that fetch whole objects; all methods are for one calling thread.

    Attributes:
        wakeup: can be waited on; readable when something has arrived.
    """

    def __init__(
        self, *, threads: int = 16, max_bytes: int = 4 * LARGEST_BYTES, timeout_s: float = 60.0
    ) -> None:
        """Start no thread yet.

        Args:
            threads: how many objects are fetched at once.
            max_bytes: `has_room` says no once so much is under way or not yet released; it is
                exceeded by one object at most.
            timeout_s: limit for one object, its repeated attempts included.
        """
        self._num_threads = threads
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._threads: list[_Thread] = []
        self._under_way: dict[int, _Job] = {}
        self._held_bytes: dict[int, int] = {}
        self._shared = _Shared()
        self.wakeup, self._bell = socket.socketpair()
        self.wakeup.setblocking(False)
        self._bell.setblocking(False)

    def close(self) -> None:
        """Stop the threads; those that are stuck end when what they wait for ends."""
        self._shared.stopping.set()
        for _ in self._threads:
            self._shared.jobs.put(None)
        self.wakeup.close()
        self._bell.close()

    @property
    def busy(self) -> bool:
        """Whether something is still to arrive."""
        return bool(self._under_way)

    def has_room(self) -> bool:
        """Whether another object may be started."""
        objects = len(self._held_bytes) < 4 * self._num_threads
        return objects and sum(self._held_bytes.values()) < self._max_bytes

    def start(self, number: int, candidate: Candidate) -> None:
        """Begin to fetch an entry's object; `collect` gives it back with its number."""
        size = candidate.location.size_bytes
        if size is None:
            size = candidate.stamp.size_bytes if candidate.stamp else _UNKNOWN_BYTES
        job = self._under_way[number] = _Job(number, candidate)
        self._held_bytes[number] = min(size, LARGEST_BYTES)
        self._shared.jobs.put(job)
        self._keep_threads()

    def release(self, number: int) -> None:
        """Say that an object's bytes are no longer held; others may then be started."""
        self._held_bytes.pop(number, None)

    def collect(self) -> list[Arrival]:
        """What has arrived or was given up since the last call, in no order."""
        with contextlib.suppress(BlockingIOError):
            while self.wakeup.recv(4096):
                pass
        self._give_up()
        self._keep_threads()
        arrivals = []
        while self._shared.done:
            job = self._shared.done.popleft()
            value = job.value
            del self._under_way[job.number]
            self._held_bytes[job.number] = len(value.data) if isinstance(value, Fetched) else 0
            arrivals.append(Arrival(job.number, job.candidate, value))
        return arrivals

    def _give_up(self) -> None:
        """Skip what takes too long, and all that waits if no thread is left to fetch it."""
        now = time.monotonic()
        stuck = len(self._stalled()) >= _MAX_STALLED
        for job in self._under_way.values():
            late = job.started_s is not None and now - job.started_s > self._timeout_s
            if late or (stuck and job.started_s is None):
                with self._shared.lock:
                    if not job.finished:
                        job.given_up = job.finished = True
                        job.value = _timeout(job.candidate, self._timeout_s)
                        self._shared.done.append(job)

    def _keep_threads(self) -> None:
        """As many as can do something useful, stalled ones not counted."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        stalled = len(self._stalled())
        wanted = min(self._num_threads, len(self._under_way))
        while len(self._threads) - stalled < wanted and stalled < _MAX_STALLED:
            self._threads.append(_Thread(self._shared, self._bell, self._timeout_s))
            self._threads[-1].start()

    def _stalled(self) -> list[_Thread]:
        return [thread for thread in self._threads if thread.is_stalled]


class _Thread(threading.Thread):
    """Fetches one object after another; ends if it was given up on while fetching."""

    def __init__(self, shared: _Shared, bell: socket.socket, timeout_s: float) -> None:
        super().__init__(daemon=True, name="fetch")
        self._shared = shared
        self._bell = bell
        self._timeout_s = timeout_s
        self._job: _Job | None = None

    @property
    def is_stalled(self) -> bool:
        """Whether it is still busy with something that nobody waits for any more."""
        job = self._job
        return job is not None and job.given_up and self.is_alive()

    def run(self) -> None:
        """Work until told to stop."""
        while (job := self._shared.jobs.get()) is not None and not self._shared.stopping.is_set():
            if job.given_up:
                continue
            self._job = job
            job.started_s = time.monotonic()
            value = self._fetch(job.candidate)
            with self._shared.lock:
                if job.given_up:
                    return
                job.value, job.finished = value, True
                self._shared.done.append(job)
            self._job = None
            with contextlib.suppress(OSError):  # full: it rings already; closed: nobody listens
                self._bell.send(b"!")

    def _fetch(self, candidate: Candidate) -> Fetched | Skip | None:
        """The content, after a few attempts if need be."""
        attempt, pause_s = 1, _FIRST_PAUSE_S
        while True:
            try:
                return _read(candidate.location)
            except Exception as err:  # noqa: BLE001 - stores raise what they like
                if attempt == _ATTEMPTS or _is_final(err, candidate.location):
                    return _failed(candidate, err, attempt)
            if self._shared.stopping.wait(pause_s):
                return None
            attempt, pause_s = attempt + 1, 2 * pause_s


def _read(location: Location) -> Fetched | None:
    try:
        return Fetched(*read_location(location, max_bytes=LARGEST_BYTES))
    except ContentError as err:
        if err.reason == "too_large":
            return None
        raise


def _is_final(err: Exception, location: Location) -> bool:
    """Whether another attempt would end the same way."""
    if not isinstance(err, ContentError):
        return isinstance(err, (*_DENIED, FileNotFoundError, InputError))
    if err.reason == "truncated":  # a download that broke off, or a shard that is too short
        return location.offset_bytes is not None
    return err.reason not in _TRANSIENT or isinstance(err.__cause__, _DENIED)


def _failed(candidate: Candidate, err: Exception, attempts: int) -> Skip:
    if isinstance(err, ContentError):
        return Skip(candidate.id, candidate.uri, err.reason, str(err))
    reason = "missing" if isinstance(err, FileNotFoundError) else "unreadable"
    tries = "" if attempts == 1 else f" in {attempts} attempts"
    why = f"it could not be fetched{tries} ({type(err).__name__}: {err}); see that the store is up"
    return Skip(candidate.id, candidate.uri, reason, why)


def _timeout(candidate: Candidate, timeout_s: float) -> Skip:
    why = f"fetching it took over {timeout_s:g} s; build again when the store answers faster"
    return Skip(candidate.id, candidate.uri, "fetch_timeout", why)
