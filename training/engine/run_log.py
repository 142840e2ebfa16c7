"""The figures of a run: one json line a step, and TensorBoard's event files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
EVENTS = "tensorboard"


class RunLog:
    """Appends figures; continued at a step, it forgets what was logged from that step on."""

    def __init__(self, folder: Path, *, step: int = 0, enabled: bool = True) -> None:
        """Open the log of a run whose next step is `step`; 0 starts it anew.

        Only one process of a run has its log enabled.
        """
        self._file: TextIO | None = None
        self._events: SummaryWriter | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_FILE
        kept = _lines_before(path, step)
        path.write_text("".join(kept), "utf-8")
        self._file = path.open("a", encoding="utf-8", buffering=1)  # a line is whole or not there
        self._events = _open_events(folder / EVENTS, step)

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of one step; slashes in names group curves.

        What is not a number is left out, such as the mean of a queue that is still empty.
        """
        if self._file is None:
            return
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        if self._events is not None:
            for name, value in figures.items():
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


def _lines_before(path: Path, step: int) -> list[str]:
    if step == 0 or not path.is_file():
        return []
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(f"{line}\n")
        except (ValueError, KeyError):
            continue  # the last line of a killed run
    return kept
