"""Runs in processes of their own: forked by one that has imported everything, which takes seconds.

What a process runs is as `python -c CODE ARGUMENTS` would: a `__main__` of its own, and the whole
end of the interpreter.

    python forked.py SOCKET     then a job a message, with the files of its stderr and its status
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
IMPORTS = ("cots_model.encoder", "torch.distributed.fsdp", "torch._dynamo")
"""What takes long, and starts no thread: a forked process has one only."""
START_S = 120.0


class Forked:
    """A running process, with what tests use of `subprocess.Popen`."""

    def __init__(
        self,
        code: str,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        start_new_session: bool = False,
    ) -> None:
        """Start it; `environment` is added to this process's."""
        self.returncode: int | None = None
        self._error = bytearray()
        error, their_error = os.pipe()
        status, their_status = os.pipe()
        job = {
            "code": code,
            "arguments": list(arguments),
            "environment": dict(os.environ) | dict(environment or {}),
            "folder": os.getcwd(),
            "session": start_new_session,
        }
        try:
            _parent().send(job, (their_error, their_status))
        finally:
            os.close(their_error)
            os.close(their_status)
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115 - until it ends
        self.pid = int.from_bytes(self._status.read(4), "big")
        self._reader = threading.Thread(target=self._read, args=(error,), daemon=True)
        self._reader.start()

    def _read(self, error: int) -> None:
        with open(error, "rb") as file:
            while piece := file.read1():
                self._error += piece

    def poll(self) -> int | None:
        """How it ended, if it has."""
        return self._ended(waits=False)

    def communicate(self, timeout: float) -> tuple[None, str]:
        """Wait until it has ended; what it wrote to stderr."""
        self._reader.join(timeout)  # its end closes stderr
        if self._reader.is_alive():
            raise subprocess.TimeoutExpired("a forked process", timeout)
        self._ended(waits=True)
        return None, self._error.decode()

    def kill(self) -> None:
        """End it, if it has not."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _ended(self, *, waits: bool) -> int | None:
        if self.returncode is None:
            os.set_blocking(self._status.fileno(), waits)
            if told := self._status.read(4):
                self.returncode = int.from_bytes(told, "big", signed=True)
                self._status.close()
        return self.returncode


class _Parent:
    """The process that forks the others."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                # threads that numpy would start, and no fork may have
                env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OPENBLAS_NUM_THREADS": "1"},
            )
        self._socket = ours
        self._socket.settimeout(START_S)
        atexit.register(self._close)

    def send(self, job: dict[str, object], files: Sequence[int]) -> None:
        """Have a process forked; it tells by the second file its number, then its status."""
        message = json.dumps(job).encode()
        socket.send_fds(self._socket, [len(message).to_bytes(4, "big")], list(files))
        self._socket.sendall(message)

    def _close(self) -> None:
        self._socket.close()
        self._process.wait(30)


_parent = cache(_Parent)


def main() -> None:
    """Fork a process for each job, until there are no more."""
    for name in IMPORTS:
        importlib.import_module(name)
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs = socket.socket(fileno=int(sys.argv[1]))
    while True:
        size, files, _, _ = socket.recv_fds(jobs, 4, 2)
        if not size:
            return
        message = _receive(jobs, int.from_bytes(size, "big"))
        keeper = os.fork()
        if keeper == 0:
            jobs.close()
            keep(json.loads(message), *files)  # in a process of the job, this goes on
            return
        for file in files:
            os.close(file)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _receive(jobs: socket.socket, size: int) -> bytes:
    message = b""
    while len(message) < size:
        message += jobs.recv(size - len(message))
    return message


def keep(job: dict, error: int, status: int) -> None:
    """Fork the job's process, tell its number and, when it has ended, how."""
    child = os.fork()
    if child == 0:
        os.close(status)
        run(job, error)
        return
    os.close(error)
    os.write(status, child.to_bytes(4, "big"))
    _, ended = os.waitpid(child, 0)
    os.write(status, os.waitstatus_to_exitcode(ended).to_bytes(4, "big", signed=True))
    os._exit(0)


def run(job: dict, error: int) -> None:
    """Be the process of a job."""
    import torch

    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job["session"]:
        os.setsid()
    os.dup2(error, 2)
    os.close(error)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    sys.argv = ["-c", *job["arguments"]]
    main_module = types.ModuleType("__main__")
    sys.modules["__main__"] = main_module
    exec(compile(job["code"], "<string>", "exec"), vars(main_module))


if __name__ == "__main__":
    main()
