"""A pool of decoding processes that no picture can stop.

Each worker has its own pipe, so that the builder always knows which picture a worker is busy with:
when a worker dies or takes too long, that picture is skipped, the worker is replaced, and what
waited behind it is given to another. Results come in the order of the source.

Workers are forked from a clean server process that has imported what they need once: they start
in milliseconds, share its memory, and inherit no thread, lock or GPU context of the caller.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

import numpy as np

from cots_model.errors import CotsError
from cots_model.preprocess import PicturePreprocess
from index_builder.pipeline.result import Decoded, Result
from index_builder.pipeline.worker import READY, Failure, Picture, worker_main
from index_builder.sources.entry import Candidate, Skip

_TASKS_PER_WORKER = 2
_STARTUP_LIMIT_S = 180.0
_POLL_S = 0.25
_PRELOAD = ["cots_model.images", "cots_model.preprocess", "index_builder.pipeline.worker"]


Task = tuple[int, Candidate]


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    tasks: deque[Task] = field(default_factory=deque)
    ready: bool = False
    since_s: float = field(default_factory=time.monotonic)


class DecodePool:
    """Worker processes; use as a context manager.

    Attributes:
        decode_s: time the workers spent on pictures, all of them together.
        read_s: time spent waiting for the source.
    """

    def __init__(
        self, preprocess: PicturePreprocess, *, workers: int, timeout_s: float, window: int
    ) -> None:
        """Start the workers (their imports run while the caller goes on).

        Args:
            preprocess: sent to each worker once.
            workers: how many processes.
            timeout_s: a picture that takes longer is skipped, and its worker replaced.
            window: how many pictures may be under way or waiting to be taken.
        """
        self._preprocess = preprocess
        self._timeout_s = timeout_s
        self._window = window
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)
        self._retry: deque[Task] = deque()
        self._done: dict[int, Decoded | Skip] = {}
        self.decode_s = 0.0
        self.read_s = 0.0
        self._workers = [self._start() for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            _end(worker)
        self._workers = []

    def decode(self, entries: Iterator[Candidate | Skip]) -> Iterator[Result]:
        """Decode every candidate; skips are passed on. Results come in the order of the entries.

        Raises:
            CotsError: if workers cannot be started.
        """
        num_in, num_out, exhausted = 0, 0, False
        while True:
            while not exhausted and num_in - num_out < self._window and self._has_room():
                entry = self._next(entries)
                exhausted = entry is None
                if isinstance(entry, Candidate):
                    self._retry.append((num_in, entry))
                elif entry is not None:
                    self._done[num_in] = entry
                num_in += entry is not None
                self._hand_out()
            while num_out in self._done:
                yield Result(num_out, self._done.pop(num_out))
                num_out += 1
            if exhausted and num_in == num_out:
                return
            if num_out not in self._done and num_in > num_out:
                self._collect()
                self._hand_out()

    def _next(self, entries: Iterator[Candidate | Skip]) -> Candidate | Skip | None:
        start = time.perf_counter()
        entry = next(entries, None)
        self.read_s += time.perf_counter() - start
        return entry

    def _has_room(self) -> bool:
        return len(self._retry) < len(self._workers)

    def _hand_out(self) -> None:
        for worker in sorted(self._workers, key=lambda worker: len(worker.tasks)):
            if self._retry and worker.ready and len(worker.tasks) < _TASKS_PER_WORKER:
                task = self._retry.popleft()
                if not worker.tasks:
                    worker.since_s = time.monotonic()
                worker.tasks.append(task)
                with contextlib.suppress(OSError):  # if it died, _collect sees that
                    worker.connection.send(task[1].location)

    def _collect(self) -> None:
        """Wait for something to happen, and deal with it."""
        by_connection = {worker.connection: worker for worker in self._workers}
        active = wait(list(by_connection), timeout=_POLL_S)
        for connection in active:
            worker = by_connection[connection]  # type: ignore[index]
            try:
                self._receive(worker)
            except (EOFError, OSError):
                self._replace(worker, "decoder_crashed", "the decoder crashed on it; save it again")
        now = time.monotonic()
        for connection, worker in by_connection.items():
            if connection in active:
                continue
            if not worker.ready and now - worker.since_s > _STARTUP_LIMIT_S:
                raise _cannot_start(f"no answer after {_STARTUP_LIMIT_S:.0f} s")
            if worker.tasks and now - worker.since_s > self._timeout_s:
                why = f"decoding took over {self._timeout_s:g} s; save it again"
                self._replace(worker, "decoder_timeout", why)

    def _receive(self, worker: _Worker) -> None:
        message = worker.connection.recv()
        if message == READY:
            worker.ready = True
            return
        if isinstance(message, Picture):  # its pixels are on their way: read before settling it
            pixels = worker.connection.recv_bytes()
        number, candidate = worker.tasks.popleft()
        worker.since_s = time.monotonic()
        self.decode_s += message.seconds
        if isinstance(message, Failure):
            self._done[number] = _skip(candidate, message.reason, message.message)
            return
        pixels_U = np.frombuffer(bytearray(pixels), np.float32).reshape(1, *message.shape)
        self._done[number] = Decoded(candidate, message.stamp, message.sha256, pixels_U)

    def _replace(self, worker: _Worker, reason: str, message: str) -> None:
        """Skip the picture the worker was busy with, and give the others to a new worker."""
        if not worker.ready:
            worker.process.join(_POLL_S)
            raise _cannot_start(f"exit code {worker.process.exitcode}")
        if worker.tasks:
            number, candidate = worker.tasks.popleft()
            self._done[number] = _skip(candidate, reason, message)
        self._retry.extendleft(reversed(worker.tasks))
        _end(worker)
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=worker_main, args=(theirs, self._preprocess), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _end(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join()
    worker.process.close()


def _skip(candidate: Candidate, reason: str, message: str) -> Skip:
    return Skip(candidate.id, candidate.uri, reason, message)


def _cannot_start(why: str) -> CotsError:
    return CotsError(
        f"the decoding processes could not be started ({why}); a script must make this call under "
        "`if __name__ == '__main__':` and be a file; otherwise see what they printed above"
    )
