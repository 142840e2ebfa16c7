"""A benchmark's report: figures, and the date, hardware, versions and command behind them."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from cots_model.hardware import Hardware

FloatArray = npt.NDArray[np.float64]

_PACKAGES = ("cots-retrieval", "torch", "faiss-cpu", "numpy", "timm", "transformers")


@dataclass(frozen=True)
class Stage:
    """Times of one stage, in milliseconds.

    Attributes:
        name: what was timed.
        runs: timed calls, after the warm-up.
        median_ms: half of the calls were faster.
        p95_ms: 95 % of the calls were faster.
        min_ms: the fastest call.
    """

    name: str
    runs: int
    median_ms: float
    p95_ms: float
    min_ms: float


@dataclass(frozen=True)
class Report:
    """What one benchmark found.

    Attributes:
        benchmark: its name.
        model: name of the checkpoint, or of the model that was trained.
        model_fingerprint: hash of the checkpoint; empty if there is none.
        hardware: where.
        parameters: sizes and counts that were chosen.
        stages: the figures.
        date: when, UTC.
        command: the command line.
        versions: of the packages that matter.
        load_average: of the last minute before; above 0 something else was running.
        figures: that follow from the stages, by name.
    """

    benchmark: str
    model: str
    model_fingerprint: str
    hardware: Hardware
    parameters: dict[str, int | str]
    stages: tuple[Stage, ...]
    load_average: float
    figures: dict[str, float] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    command: str = field(default_factory=lambda: _command_line())
    versions: dict[str, str] = field(default_factory=lambda: _versions())

    def as_json(self) -> dict[str, object]:
        """All fields as JSON types."""
        return asdict(self)


def measure(name: str, call: Callable[[], object], *, runs: int, warm_up: int = 3) -> Stage:
    """Time `call`, one after the other.

    Args:
        name: of the stage.
        call: returns only when its result is there.
        runs: timed calls.
        warm_up: calls before these.
    """
    for _ in range(warm_up):
        call()
    times_ms = np.empty(runs)
    for run in range(runs):
        start = perf_counter()
        call()
        times_ms[run] = (perf_counter() - start) * 1000
    return summarise(name, times_ms)


def summarise(name: str, times_ms: Sequence[float] | FloatArray) -> Stage:
    """The figures of a stage whose calls took so many milliseconds."""
    median, p95 = np.percentile(times_ms, [50, 95])
    return Stage(
        name,
        len(times_ms),
        round(float(median), 3),
        round(float(p95), 3),
        round(float(np.min(times_ms)), 3),
    )


def write_report(report: Report, folder: Path) -> Path:
    """Write `<date>-<benchmark>.json` into `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = report.date.replace(":", "").removesuffix("+0000")
    path = folder / f"{stamp}-{report.benchmark}.json"
    path.write_text(json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path


def _command_line() -> str:
    return shlex.join(["cots", *sys.argv[1:]])


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
