"""The figures of a run: one json line a step, and TensorBoard's event files."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
EVENTS = "tensorboard"

_PLACE = ("step", "epoch")


class RunLog:
    """Appends figures; continued at a step, it forgets what was logged from that step on."""

    def __init__(
        self, folder: Path, *, step: int = 0, epoch: int = 0, enabled: bool = True
    ) -> None:
        """Open the log of a run whose next step is `step`; 0 starts it anew.

        Scores of `epoch`, which is not finished, and of later ones are forgotten, too. Only one
        process of a run has its log enabled.
        """
        self._file: TextIO | None = None
        self._events: SummaryWriter | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_FILE
        kept, again = list[dict[str, Any]](), step
        for one in _records(path):
            if one["step"] < step and one.get("epoch", -1) < epoch:
                kept.append(one)
            else:
                again = min(again, one["step"])
        _replace(path, kept)
        self._file = path.open("a", encoding="utf-8", buffering=1)  # a line is whole or not there
        self._events = _open_events(folder / EVENTS, again)
        for one in kept:
            if one["step"] >= again:  # curves can only be cut at a step
                self._draw(one["step"], one)

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of one step; slashes in names group curves.

        What is not a number is left out, such as the mean of a queue that is still empty.
        """
        self._write({"step": step}, figures)

    def record_scores(self, step: int, epoch: int, figures: Mapping[str, float]) -> None:
        """Write the scores after `epoch`, whose last step is `step`; the line has its number."""
        self._write({"step": step, "epoch": epoch}, figures)

    def _write(self, place: Mapping[str, int], figures: Mapping[str, float]) -> None:
        if self._file is None:
            return
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        self._file.write(json.dumps({**place, **figures}) + "\n")
        self._draw(place["step"], figures)

    def _draw(self, step: int, figures: Mapping[str, float]) -> None:
        if self._events is not None:
            for name, value in figures.items():
                if name not in _PLACE:
                    self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is buffered."""
        for output in (self._file, self._events):
            if output is not None:
                output.close()

    def __enter__(self) -> Self:
        """Usable in a with statement."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _open_events(folder: Path, step: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("no curves without TensorBoard: pip install 'cots-retrieval[train]'")
        return None
    return SummaryWriter(str(folder), purge_step=step)


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that may have been cut off anywhere."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError):  # the last line of a killed run
            record = json.loads(line)
            if isinstance(record, dict) and "step" in record:
                found.append(record)
    return found


def _replace(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a log anew; killed at any moment, it is the old one or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(f"{json.dumps(one)}\n" for one in records), "utf-8")
    partial.replace(path)
