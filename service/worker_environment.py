"""What servers tell libraries by environment variables: how to use the cores, where figures are."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_THREADS = "OMP_NUM_THREADS"
_SPINS = "GOMP_SPINCOUNT"  # of GNU's OpenMP, which PyTorch comes with on Linux
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable that puts prometheus_client into multiprocess mode, read when that is imported."""


def spin_little() -> None:
    """Have OpenMP's threads wait for each other asleep; call it before PyTorch is imported.

    On their own they spin, a hundred times longer than a product takes; where something else needs
    the cores, a query then waits for threads that have been put aside. On idle cores it makes no
    difference. Whoever sets either variable has the last word.
    """
    if not any(os.environ.get(name) for name in (_SPINS, "OMP_WAIT_POLICY")):
        os.environ[_SPINS] = "3000"  # some microseconds


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
