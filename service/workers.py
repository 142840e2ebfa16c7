"""Several processes that answer on one address, and the parent that keeps them running.

The parent binds the address and never answers itself. Each worker loads the settings' model and
galleries, whose vectors are memory-mapped and so in memory once, and accepts from the common
socket. One that ends unasked is replaced, later and later if that goes on. SIGTERM and SIGINT are
passed on, and the parent ends when all workers have.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cots_model.errors import InputError
from service.server import ServerError, address_of
from service.settings import Settings
from service.worker_process import Report, serve_worker

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SETTLED_S = 60.0
"""A worker that ran this long may fail again without a longer pause."""
_MARGIN_S = 3.0
"""Time beyond the grace time that workers get before they are killed."""
_THREADS = "OMP_NUM_THREADS"


@dataclass
class _Worker:
    number: int
    process: BaseProcess | None = None
    reports: connection.Connection | None = None
    begun_s: float = 0.0
    failures: int = 0
    start_at_s: float = 0.0


def threads_per_worker(workers: int, cores: int) -> int:
    """How many threads the model of each worker computes with."""
    return max(1, cores // workers)


def pause_s(failures: int) -> float:
    """Seconds before a worker is started again that failed `failures` times in a row."""
    return min(_FIRST_PAUSE_S * 2.0 ** max(0, failures - 1), _LONGEST_PAUSE_S)


def run_workers(
    settings: Settings,
    listener: socket.socket,
    on_start: Callable[[str], None] | None = None,
    *,
    target: Callable[..., None] | None = None,
) -> None:
    """Serve with `settings.workers` processes until a signal.

    Args:
        settings: of every worker.
        listener: from `service.server.bind`; it is closed at the first signal.
        on_start: called with the address when the first worker is about to serve.
        target: what a worker runs; `serve_worker` unless a test brings its own.

    Raises:
        InputError: if no worker could start because of the settings.
        ServerError: if no worker could start for another reason.
    """
    with _shared_metrics(), _threads(settings.workers):
        supervisor = _Supervisor(settings, listener, on_start, target or serve_worker)
        with supervisor.signals():
            supervisor.run()


class _Supervisor:
    """Starts, watches, replaces and ends the workers; everything happens in one thread."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        on_start: Callable[[str], None] | None,
        target: Callable[..., None],
    ) -> None:
        from prometheus_client import CollectorRegistry

        from service.metrics import restart_counter  # only now: the folder is known

        self._settings = settings
        self._values = settings.model_dump(mode="json")
        self._listener = listener
        self._on_start = on_start
        self._target = target
        self._spawn = multiprocessing.get_context("spawn")
        self._workers = [_Worker(number) for number in range(settings.workers)]
        self._restarts = restart_counter(CollectorRegistry())
        self._served = False
        self._kill_at_s: float | None = None
        self._problem: Report | None = None
        self._signals: list[int] = []
        self._bell, self._ring = socket.socketpair()
        for end in (self._bell, self._ring):
            end.setblocking(False)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Pass SIGTERM and SIGINT on while this lasts."""
        taken = (signal.SIGTERM, signal.SIGINT)
        before = {sig: signal.signal(sig, self._on_signal) for sig in taken}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)
            self._bell.close()
            self._ring.close()

    def run(self) -> None:
        """Keep the workers running until they are told to end, and have."""
        address = address_of(self._listener)
        while not (self._ending and not self._running()):
            self._start_due()
            self._wait()
            self._pass_signals_on()
            for worker in self._workers:
                self._read_report(worker, address)
                self._bury(worker)
            self._kill_late()
        if self._problem is not None:
            kind = InputError if self._problem.is_input else ServerError
            raise kind(self._problem.problem)

    @property
    def _ending(self) -> bool:
        return self._kill_at_s is not None

    def _running(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.process is not None]

    def _on_signal(self, sig: int, frame: object) -> None:
        self._signals.append(sig)
        with contextlib.suppress(OSError):
            self._ring.send(b".")

    def _pass_signals_on(self) -> None:
        while self._signals:
            sig = self._signals.pop(0)
            log.info("signal passed on to the workers", extra={"signal": signal.Signals(sig).name})
            self._end(sig)

    def _end(self, sig: int) -> None:
        """Tell the workers to end, and let go of the socket, which then closes with theirs."""
        if not self._ending:
            self._kill_at_s = time.monotonic() + self._settings.grace_s + _MARGIN_S
            self._listener.close()
        for worker in self._running():
            if worker.process is not None and worker.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, sig)

    def _start_due(self) -> None:
        now_s = time.monotonic()
        for worker in self._workers:
            if worker.process is None and not self._ending and worker.start_at_s <= now_s:
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        try:
            self._start_process(worker)
        except OSError:  # no process or descriptor to be had right now
            log.exception("worker could not be started", extra={"worker": worker.number})
            worker.failures += 1
            worker.start_at_s = time.monotonic() + pause_s(worker.failures)

    def _start_process(self, worker: _Worker) -> None:
        theirs, ours = self._spawn.Pipe(duplex=True)
        process = self._spawn.Process(
            target=self._target,
            args=(worker.number, self._values, self._listener, theirs),
            name=f"worker-{worker.number}",
        )
        process.start()
        theirs.close()
        worker.process, worker.reports, worker.begun_s = process, ours, time.monotonic()
        fields = {"worker": worker.number, "worker_pid": process.pid}
        log.info("worker started", extra=fields)

    def _wait(self) -> None:
        """Until a worker reports or ends, a signal comes, or something is due."""
        watched: list[Any] = [self._bell]
        for worker in self._running():
            assert worker.process is not None
            watched.append(worker.process.sentinel)
            if worker.reports is not None:
                watched.append(worker.reports)
        due_s = [w.start_at_s for w in self._workers if w.process is None and not self._ending]
        if self._kill_at_s is not None:
            due_s.append(self._kill_at_s)
        now_s = time.monotonic()
        timeout_s = max(0.0, min(due_s) - now_s) if due_s else None
        connection.wait(watched, timeout_s)
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(1024)

    def _read_report(self, worker: _Worker, address: str) -> None:
        if worker.reports is None or not worker.reports.poll():
            return
        try:
            report = worker.reports.recv()
        except EOFError:
            report = None
        if report is not None and report.problem is None:
            self._serves(worker, address)
            return
        if report is not None:
            log.error("worker cannot serve: %s", report.problem, extra={"worker": worker.number})
            if not self._served:
                self._give_up(report)
        worker.reports.close()
        worker.reports = None

    def _serves(self, worker: _Worker, address: str) -> None:
        log.info("worker serves", extra={"worker": worker.number})
        if not self._served and self._on_start is not None:
            self._on_start(address)
        self._served = True

    def _give_up(self, report: Report) -> None:
        """What one worker could not at the start, the others cannot either."""
        self._problem = self._problem or report
        self._end(signal.SIGTERM)

    def _bury(self, worker: _Worker) -> None:
        process = worker.process
        if process is None or process.exitcode is None:
            return
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(process.pid)
        fields = {"worker": worker.number, "worker_pid": process.pid, "exit": process.exitcode}
        if worker.reports is not None:
            worker.reports.close()
            worker.reports = None
        worker.process = None
        if self._ending:
            log.info("worker ended", extra=fields)
            return
        if not self._served:
            self._give_up(Report("a worker ended before it could serve; the log says why"))
            return
        settled = time.monotonic() - worker.begun_s > _SETTLED_S
        worker.failures = 1 if settled else worker.failures + 1
        wait_s = pause_s(worker.failures)
        worker.start_at_s = time.monotonic() + wait_s
        self._restarts.inc()
        log.error("worker ended; it will be started again", extra={**fields, "pause_s": wait_s})

    def _kill_late(self) -> None:
        if self._kill_at_s is None or time.monotonic() < self._kill_at_s:
            return
        for worker in self._running():
            if worker.process is not None:
                log.error("worker did not end in time", extra={"worker": worker.number})
                worker.process.kill()
        self._kill_at_s = time.monotonic() + _MARGIN_S


@contextlib.contextmanager
def _shared_metrics() -> Iterator[None]:
    """A folder for the figures of all workers, named to them by a variable."""
    name = (
        "PROMETHEUS_MULTIPROC_DIR"  # service.metrics.SHARED_FOLDER, which must not be imported yet
    )
    with tempfile.TemporaryDirectory(prefix="cots-metrics-") as folder, _variable(name, folder):
        yield


@contextlib.contextmanager
def _threads(workers: int) -> Iterator[None]:
    """Share the cores out, unless the environment says how many threads to use."""
    cores = len(os.sched_getaffinity(0))
    chosen = os.environ.get(_THREADS) or str(threads_per_worker(workers, cores))
    with _variable(_THREADS, chosen):
        yield


@contextlib.contextmanager
def _variable(name: str, value: str | Path) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = str(value)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
