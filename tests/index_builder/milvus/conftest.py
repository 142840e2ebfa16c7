"""Milvus Lite, the real server within this process; and as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("pymilvus", reason="pymilvus is not installed")
pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")


@contextmanager
def lite_file(path: Path) -> Iterator[str]:
    """A Milvus Lite file's url; its server is stopped at the end."""
    from milvus_lite.server_manager import server_manager_instance

    try:
        yield f"milvus://{path}"
    finally:
        server_manager_instance.release_server(str(path))


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[str]:
    """Url of a new Milvus Lite file, without a collection."""
    with lite_file(tmp_path / "lite.db") as url:
        yield url


class LiteServer:
    """`milvus-lite server` on loopback; can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"milvus://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "milvus_lite", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--data-dir", str(self._folder)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            assert self._process.poll() is None, "the server ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def stop(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait(20)
            self._process = None


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[[], LiteServer]]:
    """Start a Milvus Lite server; it is stopped at the end."""
    with ExitStack() as stack:

        def start() -> LiteServer:
            server = LiteServer(tmp_path / "server.db")
            stack.callback(server.stop)
            server.start()
            return server

        yield start
