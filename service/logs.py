"""Structured logs: one JSON object a line on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_QUIET = ("httpx", "httpcore", "faiss.loader")
"""The first two log every url in full, which may hold what a client confided; the last says of each
kind of processor that it is not this one."""

MOST_LINES = 10_000
"""Lines that wait for whoever reads stderr; with more of them the newest are lost."""

_END_S = 1.0  # for lines that still wait when the process ends
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


class LineQueue(QueueHandler):
    """Lines that a thread writes to stderr.

    A pipe whose reader stands still, or a terminal that is stopped, takes no more after a while,
    and whoever writes to it waits. That is the thread: the service answers on. Of lines that there
    is no room for it is told how many they were.
    """

    def __init__(self, most: int = MOST_LINES, descriptor: int = _STDERR) -> None:
        """Begin to write.

        Args:
            most: lines that may wait.
            descriptor: where they go.
        """
        self._lines: queue.Queue[logging.LogRecord] = queue.Queue(most)
        super().__init__(self._lines)
        self.num_lost = 0
        self._num_told = 0
        self._writer = QueueListener(self._lines, _Descriptor(descriptor))
        self._writer.start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Let a line wait to be written, if there is room for it."""
        try:
            if self.num_lost > self._num_told:
                self._lines.put_nowait(self.prepare(self._loss()))
                self._num_told = self.num_lost
            self._lines.put_nowait(record)
        except queue.Full:
            self.num_lost += 1

    def flush(self) -> None:
        """Wait, but not for long, until all is written; called as the process ends."""
        until_s = time.monotonic() + _END_S
        while self._lines.unfinished_tasks and time.monotonic() < until_s:
            time.sleep(0.005)

    def close(self) -> None:
        """Take no more lines; those that wait are written yet."""
        with contextlib.suppress(queue.Full):
            self._writer.enqueue_sentinel()
        super().close()

    def _loss(self) -> logging.LogRecord:
        message = "%d lines of this log are lost: stderr was not read fast enough"
        args = (self.num_lost - self._num_told,)
        return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, args, None)


class _Descriptor(logging.Handler):
    """Writes lines to a file descriptor, without a lock that the end of the process could wait for.

    Nobody is left to be told what cannot be written.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def createLock(self) -> None:
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        rest = memoryview(f"{record.msg}\n".encode(errors="backslashreplace"))
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]


def num_lost() -> int:
    """Lines of the log that nobody read and there was no more room for."""
    handlers = logging.getLogger().handlers
    return sum(one.num_lost for one in handlers if isinstance(one, LineQueue))


def configure_logging(level: str, **fields: Any) -> None:
    """Send every logger's records to stderr as JSON; called once, by the command.

    Args:
        level: lowest level logged.
        fields: what every line has besides.
    """
    handler = LineQueue()
    handler.setFormatter(JsonFormatter(**fields))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
