"""Structured logs: one JSON object a line on stderr."""

from __future__ import annotations

import contextvars
import json
import logging
import os
import queue
import select
import threading
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_QUIET = ("httpx", "httpcore", "faiss.loader")
"""The first two log every url in full, which may hold what a client confided; the last says of each
kind of processor that it is not this one."""

MOST_BYTES = 4 * 1024 * 1024
"""Of lines that wait for whoever reads stderr; what comes beyond is lost."""

_END_S = 5.0  # for lines that still wait when the process ends, while they are read,
_STILL_S = 1.0  # and when they are not
_PAUSE_S = 0.02  # lines that come meanwhile wake nobody
_STDERR = 2

current_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that the running task answers; it is in all that the task logs."""


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, id of the request, and whatever was passed as `extra`."""

    def __init__(self, **fields: Any) -> None:
        """Format records.

        Args:
            fields: what every line has besides, such as the number of the worker.
        """
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One line; a stack trace goes into the field `exception`."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
        }
        request_id = current_request_id.get()
        if request_id is not None:
            entry["request_id"] = request_id
        entry.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class LineWriter(logging.Handler):
    """Lines that a thread writes to stderr.

    A pipe whose reader stands still, or a terminal that is stopped, takes no more after a while,
    and whoever writes to it waits. That is the thread: the service answers on. Of lines that there
    is no room for it is told how many they were.

    Attributes:
        num_lost: of these, and of lines that could not be written.
    """

    def __init__(self, most_bytes: int = MOST_BYTES, descriptor: int = _STDERR) -> None:
        """Begin to write.

        Args:
            most_bytes: of lines that wait; what comes beyond is lost.
            descriptor: where they go.
        """
        super().__init__()
        # of all queues the one that may be used while it is used, as by a finaliser that logs
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._most_bytes = most_bytes
        self._descriptor = descriptor
        self._put_bytes = 0
        self._written_bytes = 0
        self._num_refused = 0
        self._num_told = 0
        self._num_unwritable = 0
        self._next_line: bytes | None = b""  # taken, and not written yet; None at the end
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    @property
    def num_lost(self) -> int:
        """See above."""
        return self._num_refused + self._num_unwritable

    def emit(self, record: logging.LogRecord) -> None:
        """Let a line wait to be written, if there is room for it."""
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001 - what cannot be logged ends no request
            self.handleError(record)
            return
        if self._num_waiting_bytes() + len(line) > self._most_bytes:
            self._num_refused += 1
            return
        self._tell_losses()
        self._put(line)

    def flush(self) -> None:
        """Wait until all is written, for as long as something is; called as the process ends."""
        self.write_rest(_END_S)

    def write_rest(self, within_s: float) -> None:
        """Wait until all is written, but no longer, and not for a reader that stands still."""
        self._tell_losses()
        end_s = time.monotonic() + within_s
        before, moved_s = self._written_bytes, time.monotonic()
        while self._num_waiting_bytes() and time.monotonic() < min(end_s, moved_s + _STILL_S):
            time.sleep(0.005)
            if self._written_bytes != before:
                before, moved_s = self._written_bytes, time.monotonic()

    def close(self) -> None:
        """Take no more lines; those that wait are written yet."""
        self._tell_losses()
        self._lines.put(None)
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _num_waiting_bytes(self) -> int:
        return self._put_bytes - self._written_bytes

    def _put(self, line: bytes) -> None:
        self._put_bytes += len(line)
        self._lines.put(line)

    def _tell_losses(self) -> None:
        """One line for all that were lost since the last, of no request."""
        num_untold = self._num_refused - self._num_told
        if not num_untold:
            return
        self._num_told = self._num_refused
        message = "%d lines of this log are lost: stderr was not read fast enough"
        record = logging.LogRecord(
            __name__, logging.WARNING, __file__, 0, message, (num_untold,), None
        )
        self._put(contextvars.Context().run(self._line, record))

    def _write_all(self) -> None:
        while lines := self._next():
            text = b"".join(lines)
            try:
                _write(self._descriptor, text)
            except OSError:  # nobody is left to be told
                self._num_unwritable += len(lines)
            self._written_bytes += len(text)
            if not self._next_line and self._lines.empty():
                time.sleep(_PAUSE_S)

    def _next(self) -> list[bytes]:
        """Lines that wait, as many as a pipe takes whole, a longer one alone; none at the end.

        So what other processes write to the same pipe comes between lines.
        """
        lines: list[bytes] = []
        size = 0
        while self._next_line is not None:
            if self._next_line:
                size += len(self._next_line)
                if lines and size > select.PIPE_BUF:
                    break
                lines.append(self._next_line)
                self._next_line = b""
            if lines and self._lines.empty():
                break
            self._next_line = self._lines.get()
        return lines


def _write(descriptor: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # whoever shares it has made it so
            select.select([], [descriptor], [])


def num_lost() -> int:
    """Lines of the log that nobody read and there was no more room for."""
    return sum(writer.num_lost for writer in _writers())


def write_rest(within_s: float) -> None:
    """Wait until what was logged is written, for so long, and for no reader that stands still."""
    for writer in _writers():
        writer.write_rest(within_s)


def _writers() -> list[LineWriter]:
    return [one for one in logging.getLogger().handlers if isinstance(one, LineWriter)]


def configure_logging(level: str, **fields: Any) -> None:
    """Send every logger's records to stderr as JSON; called once, by the command.

    Args:
        level: lowest level logged.
        fields: what every line has besides.
    """
    handler = LineWriter()
    handler.setFormatter(JsonFormatter(**fields))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
