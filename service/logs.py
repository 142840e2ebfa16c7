"""Structured logs: one JSON object a line on stderr."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_QUIET = ("httpx", "httpcore", "faiss.loader")
"""The first two log every url in full, which may hold what a client confided; the last says of each
kind of processor that it is not this one."""

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


def configure_logging(level: str, **fields: Any) -> None:
    """Send every logger's records to stderr as JSON; called once, by the command.

    Args:
        level: lowest level logged.
        fields: what every line has besides.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(**fields))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
