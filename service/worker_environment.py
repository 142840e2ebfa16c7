"""What several workers share by environment variables: a folder of figures, and the cores."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_THREADS = "OMP_NUM_THREADS"
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable that puts prometheus_client into multiprocess mode, read when that is imported."""


def threads_per_worker(workers: int, cores: int) -> int:
    """How many threads the model of each worker computes with."""
    return max(1, cores // workers)


@contextlib.contextmanager
def shared_metrics() -> Iterator[None]:
    """A folder for the figures of all workers, named to them by a variable."""
    with (
        tempfile.TemporaryDirectory(prefix="cots-metrics-") as folder,
        _variable(METRICS_FOLDER, folder),
    ):
        yield


@contextlib.contextmanager
def shared_cores(workers: int) -> Iterator[None]:
    """Share the cores out, unless the environment says how many threads to use."""
    cores = len(os.sched_getaffinity(0))
    chosen = os.environ.get(_THREADS) or str(threads_per_worker(workers, cores))
    with _variable(_THREADS, chosen):
        yield


@contextlib.contextmanager
def _variable(name: str, value: str | Path) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = str(value)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
