"""Running the application: the socket, signals and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from cots_model.errors import CotsError, InputError
from service.logs import write_rest
from service.settings import CLOSE_S, Settings

_ACCEPT_S = 0.1  # for the event loop to accept whoever is connected
_SHARED_ACCEPT_S = 0.4  # the same, and for another process to see to it that nobody else is
_READER = "AnyIO worker"  # threads that streamed answers are read by
_NO_TIME_S = 0.1  # for the last lines of the log, where the grace time is over
_THREADS_S = 0.5  # for threads of libraries to end, once the event loop has
_SO_ATTACH_FILTER = 26  # of Linux; the socket module does not name it
_BPF_RETURN = 0x06

log = logging.getLogger(__name__)

SETTLE_S = 0.2
"""Between the end of listening and the end of idle connections; what was sent by then is read."""


class ServerError(CotsError):
    """The server could not start or did not end well."""


def bind(host: str, port: int) -> socket.socket:
    """Take the address before anything slow is loaded.

    Raises:
        InputError: if the host is not an address of this machine.
        ServerError: if the port is taken or may not be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as err:  # UnicodeError: a label over 63 characters
        raise InputError(f"host {host!r} is not known ({err}); try 127.0.0.1") from err
    # asyncio turns off Nagle's algorithm only where it is told that this is TCP
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)  # a second server cannot take the port while this one loads
    except OSError as err:
        listener.close()
        message = f"cannot listen on {host} port {port}: {err.strerror}; choose another --port"
        raise ServerError(message) from err
    return listener


class GracefulServer(uvicorn.Server):
    """On SIGTERM: `/readyz` turns 503 at once, new requests are still answered for `drain_s`.

    Then the listener closes, requests in flight finish, and the process ends with status 0.
    SIGINT, or a second SIGTERM, skips the waiting. When the grace time is over the process ends
    whatever holds it up: a read, say, from a share that does not answer, which no thread gives up.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        *,
        shared: bool,
        on_start: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._settings = settings
        self._shared = shared
        self._draining = False
        self._overdue = threading.Timer(settings.grace_s, leave, kwargs={"log_s": _NO_TIME_S})
        self._overdue.daemon = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal; nothing is re-raised at the end, so the status stays 0."""
        waits = sig == signal.SIGTERM and not self._draining and self._settings.drain_s > 0
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "service"):
            app.state.service.readiness.draining = True
        if self._draining and sig == signal.SIGINT:
            self.force_exit = True
        if not self._draining:
            self._overdue.start()
        self._draining = True
        loop = _running_loop()
        name = signal.Signals(sig).name
        if loop is not None:
            loop.call_soon_threadsafe(log.info, "%s: the service ends", name)
        if waits and loop is not None:
            loop.call_soon_threadsafe(loop.call_later, self._settings.drain_s, self._stop)
        else:
            self._stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, say so, then leave what was loaded to no garbage collection.

        A full collection looks at every object of the libraries and holds up all threads: a quarter
        of a second, again and again under load.
        """
        await super().startup(sockets)
        if self.started:
            await asyncio.to_thread(self._on_start)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, read what is already on its way, then end as uvicorn does.

        uvicorn closes connections without a request at once, also those just accepted whose
        request has not been read yet. The system resets those that nobody has accepted when the
        listener closes: so that there are none, it is told to complete no more before. Others who
        share it may go on, so that is left to their parent.
        """
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "service"):
            app.state.service.reloader.close()  # whoever waits for one is told, not waited for
        if not self._shared:
            for server in self.servers:
                for listening in server.sockets:
                    connect_nobody(listening)
        await asyncio.sleep(_SHARED_ACCEPT_S if self._shared else _ACCEPT_S)
        for server in self.servers:
            server.close()
        await asyncio.sleep(SETTLE_S)
        await super().shutdown(sockets)
        gc.unfreeze()  # or libraries that count their objects at the end would call them leaked

    def is_over(self) -> None:
        """All has ended in time."""
        self._overdue.cancel()

    def _stop(self) -> None:
        self.should_exit = True


def connect_nobody(listening: socket.socket) -> None:
    """Drop all that comes for a listening socket, for good and whoever else holds it.

    Connections that are made already go on. Clients try again within a second, and find another
    process or none. Linux only.
    """
    if sys.platform != "linux":
        return
    drop = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))  # 0 bytes of it
    program = struct.pack("HL", 1, ctypes.addressof(drop))
    with contextlib.suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    with contextlib.suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None


def serve(
    app: FastAPI,
    settings: Settings,
    listener: socket.socket,
    on_start: Callable[[str], object] = lambda _: None,
    *,
    shared: bool = False,
) -> bool:
    """Serve `app` on `listener` until a signal.

    Args:
        app: the application.
        settings: times of the graceful end.
        listener: from `bind`.
        on_start: called with the address, in a thread, as soon as requests are accepted.
        shared: whether other processes accept from the listener too; then whoever started them
            calls `connect_nobody` when all are to end.

    Returns:
        Whether all threads have ended that the end of the process would wait for, or that could
        compute beyond it; else end it by `leave`.

    Raises:
        ServerError: if the application could not start.
    """
    config = server_config(app, settings)
    address = address_of(listener)
    server = GracefulServer(config, settings, shared=shared, on_start=lambda: on_start(address))
    server.run(sockets=[listener])
    server.is_over()
    if not server.started:
        raise ServerError("the service could not start; the log above says why")
    return bool(app.state.ended) and not _held_up()


def _held_up() -> bool:
    """Whether a thread that reads an original has no end; the interpreter would wait for it.

    Those of pools are told to end when the interpreter does.
    """
    readers = [one for one in threading.enumerate() if one.name.startswith(_READER)]
    until_s = time.monotonic() + _THREADS_S
    for reader in readers:
        reader.join(max(0.0, until_s - time.monotonic()))
    return any(reader.is_alive() for reader in readers)


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application.

    By h11, also where httptools is installed: that is faster by a tenth, but loses the body of a
    request with an `Upgrade` it does not know, which Java's client sends, and bounds no head.
    """
    from service.protocol import (  # heavy, and no use where nothing can be listened to
        MOST_HEAD_BYTES,
        Protocol,
    )

    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(
            1, int(settings.grace_s - settings.drain_s - CLOSE_S - SETTLE_S)
        ),
    )


def leave(
    status: int = 0,
    why: str = "a thread is still at work; ending without it",
    *,
    log_s: float = 1.0,
) -> NoReturn:
    """End the process now, whatever its threads do.

    A thread that computes while the interpreter shuts down takes the process with it (SIGABRT).

    Args:
        status: of the process.
        why: for the log.
        log_s: for what is logged to be written.
    """
    log.warning(why)
    write_rest(log_s)
    os._exit(status)


def address_of(listener: socket.socket) -> str:
    """The listener's address as a URL that a browser on this machine can open."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
