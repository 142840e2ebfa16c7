"""Several processes that answer on one address, and the parent that keeps them running.

The parent binds the address, and answers itself only until the first worker does. Each worker
loads the settings' model and galleries, whose vectors are memory-mapped and so in memory once, and
accepts from the common socket. One that ends unasked is replaced, later and later if that goes on,
and so is one whose event loop does not answer any more. SIGTERM and SIGINT are passed on, and the
parent ends when all workers have.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any

from cots_model.errors import InputError
from service.heartbeat import Beat, Pulse
from service.server import ServerError, address_of, connect_nobody
from service.settings import Settings
from service.waiting_room import WaitingRoom
from service.worker_environment import shared_cores, shared_metrics
from service.worker_place import Place
from service.worker_process import Report, serve_worker

log = logging.getLogger(__name__)

_MARGIN_S = 3.0
"""Time beyond the grace time that workers get before they are killed; all that silent ones get."""


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
    with shared_metrics(), shared_cores(settings.workers):
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

        from service.metrics import supervision_counters  # only now: the folder is known

        self._settings = settings
        self._values = settings.model_dump(mode="json")
        self._listener = listener
        self._on_start = on_start
        self._target = target
        self._spawn = multiprocessing.get_context("spawn")
        self._workers = [Place(number) for number in range(settings.workers)]
        self._counters = supervision_counters(CollectorRegistry())
        self._served = False
        self._until_served = contextlib.ExitStack()
        self._kill_at_s: float | None = None
        self._deaf_at_s: float | None = None
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
        with self._until_served:
            self._until_served.callback(WaitingRoom(self._listener).close)
            self._supervise(address)
        if self._problem is not None:
            kind = InputError if self._problem.is_input else ServerError
            raise kind(self._problem.problem)

    def _supervise(self, address: str) -> None:
        while not (self._ending and not self._running()):
            self._start_due()
            self._wait()
            self._pass_signals_on()
            for worker in self._workers:
                self._read_reports(worker, address)
                self._end_silent(worker)
                self._bury(worker)
            self._stop_listening()
            self._kill_late()

    @property
    def _ending(self) -> bool:
        return self._kill_at_s is not None

    def _running(self) -> list[Place]:
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
        """Tell the workers to end; as long as they answer new requests, these are let in."""
        now_s = time.monotonic()
        drains = sig == signal.SIGTERM and not self._ending
        self._until_served.close()
        if not self._ending:
            self._kill_at_s = now_s + self._settings.grace_s + _MARGIN_S
        self._deaf_at_s = now_s + (self._settings.drain_s if drains else 0.0)
        for worker in self._running():
            worker.signal(sig)

    def _stop_listening(self) -> None:
        """Let nobody in any more, and let go of the socket, which then closes with the workers'.

        Only now, when all end: one worker that ends leaves the socket to the others.
        """
        if self._deaf_at_s is not None and time.monotonic() >= self._deaf_at_s:
            if self._listener.fileno() >= 0:
                connect_nobody(self._listener)
                self._listener.close()
            self._deaf_at_s = None

    def _start_due(self) -> None:
        now_s = time.monotonic()
        for worker in self._workers:
            if worker.process is None and not self._ending and worker.start_at_s <= now_s:
                self._start(worker)

    def _start(self, worker: Place) -> None:
        worker.begun_s = time.monotonic()
        try:
            self._start_process(worker)
        except OSError:  # no process or descriptor to be had right now
            log.exception("worker could not be started", extra={"worker": worker.number})
            worker.fail()

    def _start_process(self, worker: Place) -> None:
        theirs, ours = self._spawn.Pipe(duplex=True)
        process = self._spawn.Process(
            target=self._target,
            args=(worker.number, self._values, self._listener, theirs),
            name=f"worker-{worker.number}",
        )
        process.start()
        theirs.close()
        pulse = Pulse(
            interval_s=self._settings.worker_heartbeat_s,
            limit_s=self._settings.worker_silent_s,
            now_s=time.monotonic(),
        )
        worker.take(process, ours, pulse)
        log.info("worker started", extra=worker.fields())

    def _wait(self) -> None:
        """Until a worker reports or ends, a signal comes, or something is due."""
        watched: list[Any] = [self._bell]
        for worker in self._running():
            assert worker.process is not None
            watched.append(worker.process.sentinel)
            if worker.reports is not None:
                watched.append(worker.reports)
        now_s = time.monotonic()
        if self._kill_at_s is not None:
            due_s = [self._kill_at_s, *([] if self._deaf_at_s is None else [self._deaf_at_s])]
        else:
            due_s = [worker.start_at_s for worker in self._workers if worker.process is None]
            due_s += [w.told_s + w.patience_s for w in self._running() if w.told_s is not None]
            due_s.append(now_s + self._settings.worker_heartbeat_s)
        connection.wait(watched, max(0.0, min(due_s) - now_s))
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(1024)

    def _read_reports(self, worker: Place, address: str) -> None:
        while worker.reports is not None and worker.reports.poll():
            try:
                report = worker.reports.recv()
            except (EOFError, OSError):
                report = None
            match report:
                case Beat():
                    self._beats(worker)
                case Report(problem=None):
                    self._serves(worker, address)
                case _:
                    self._hangs_up(worker, report)

    def _beats(self, worker: Place) -> None:
        if worker.pulse is not None:
            worker.pulse.beat()
        if worker.told_s is not None:  # it came back, and finishes what it has begun
            worker.patience_s = self._settings.grace_s + _MARGIN_S

    def _hangs_up(self, worker: Place, report: Report | None) -> None:
        if report is not None:
            log.error("worker cannot serve: %s", report.problem, extra={"worker": worker.number})
            if not self._served:
                self._give_up(report)
        worker.hang_up()

    def _end_silent(self, worker: Place) -> None:
        """End a worker whose event loop does not answer: by SIGTERM, and if that does nothing."""
        if worker.process is None or worker.pulse is None or self._ending:
            return
        now_s = time.monotonic()
        if worker.told_s is None and worker.pulse.is_silent(now_s):
            limit_s = self._settings.worker_silent_s
            fields = {**worker.fields(), "limit_s": limit_s}
            log.error("worker is silent; it is told to end", extra=fields)
            self._counters.silent.inc()
            worker.told_s, worker.patience_s = now_s, _MARGIN_S
            worker.signal(signal.SIGTERM)
        elif worker.told_s is not None and now_s >= worker.told_s + worker.patience_s:
            log.error("worker did not end; it is killed", extra=worker.fields())
            worker.patience_s += _MARGIN_S
            worker.process.kill()

    def _serves(self, worker: Place, address: str) -> None:
        log.info("worker serves", extra={"worker": worker.number})
        self._until_served.close()
        if not self._served and self._on_start is not None:
            self._on_start(address)
        self._served = True

    def _give_up(self, report: Report) -> None:
        """What one worker could not at the start, the others cannot either."""
        self._problem = self._problem or report
        self._end(signal.SIGTERM)

    def _bury(self, worker: Place) -> None:
        process = worker.process
        if process is None or process.exitcode is None:
            return
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(process.pid)
        fields = {**worker.fields(), "exit": process.exitcode}
        worker.leave()
        if self._ending:
            log.info("worker ended", extra=fields)
            return
        if not self._served:
            self._give_up(Report("a worker ended before it could serve; the log says why"))
            return
        wait_s = worker.fail()
        self._counters.restarts.inc()
        log.error("worker ended; it will be started again", extra={**fields, "pause_s": wait_s})

    def _kill_late(self) -> None:
        if self._kill_at_s is None or time.monotonic() < self._kill_at_s:
            return
        for worker in self._running():
            if worker.process is not None:
                log.error("worker did not end in time", extra={"worker": worker.number})
                worker.process.kill()
        self._kill_at_s = time.monotonic() + _MARGIN_S
