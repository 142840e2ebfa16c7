"""The life of one of several worker processes; `service.workers` starts and watches them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, NoReturn

from cots_model.errors import CotsError, InputError
from service.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a worker tells its parent once: that it serves, or why it cannot; then it beats."""

    problem: str | None = None
    is_input: bool = False


def serve_worker(
    number: int,
    values: dict[str, Any],
    listener: socket.socket,
    reports: connection.Connection,
) -> None:
    """The life of one worker process.

    Args:
        number: of this worker.
        values: all settings.
        listener: the common socket.
        reports: where the parent hears that it serves, or why not, and then the beats.
    """
    from service.app import create_app
    from service.heartbeat import with_heartbeat
    from service.logs import configure_logging
    from service.server import leave, serve
    from service.state import Resources

    begin_worker(reports)
    settings = Settings(**values)
    configure_logging(settings.log_level, worker=number)
    try:
        resources = Resources.load(settings)
        _warn_of_gpu(number, settings, resources.encoder.device.type)
        app = create_app(settings, resources, worker=number)
        with_heartbeat(app, reports.send, interval_s=settings.worker_heartbeat_s)
        ended = serve(
            app, settings, listener, on_start=lambda _: reports.send(Report()), shared=True
        )
    except CotsError as err:
        _refuse(reports, err)
    except Exception as err:
        log.exception("worker failed")
        raise SystemExit(1) from err
    if not ended:
        leave()


def begin_worker(reports: connection.Connection) -> None:
    """Leave the terminal's signals to the parent, and end when it is gone."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # Ctrl-C goes to the parent alone, which passes it on once

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            reports.recv()  # nothing is ever sent: this ends when the parent does
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _refuse(reports: connection.Connection, err: CotsError) -> NoReturn:
    is_input = isinstance(err, InputError)
    with contextlib.suppress(OSError):
        reports.send(Report(str(err), is_input))
    raise SystemExit(2 if is_input else 1)


def _warn_of_gpu(number: int, settings: Settings, device: str) -> None:
    if number == 0 and device == "cuda":
        log.warning(
            "%d workers share one GPU, with a model in its memory each; one worker that batches "
            "is usually faster: --workers 1",
            settings.workers,
        )
