"""The parts of a batch on a CPU, each computed by a core of its own.

Cores that share a layer end together, when the slowest has done its share; one that something else
takes away for a moment holds up all of them, at every layer. Cores that have a part each wait for
nobody: on a machine that also decodes or answers requests that is a fifth faster.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_START_LIMIT_S = 60.0


def part_sizes(count: int, most: int) -> list[int]:
    """How to divide `count` items into parts of `most` at most, so that all cores end together.

    Seven parts take two cores as long as eight, and two items that one core has as long as two
    turns; so each core has as many parts, of nearly the same size.
    """
    cores = torch.get_num_threads()
    number = min(count, cores * math.ceil(count / (cores * most)))
    return [count // number + (place < count % number) for place in range(number)]


def map_on_cores(call: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """The result of `call` for each part, in order.

    As many parts are computed at once as PyTorch has threads, each by one thread; what `call` gives
    must not depend on the number of threads. A single part has all of them, whoever asks: OpenMP
    keeps helpers for each thread that computes so, and those of several wait for each other. So
    `call` must map nothing itself.

    Raises:
        Exception: the first that `call` raises, after all parts have ended.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not parts:
        return [call(part) for part in parts]
    workers = 1 if len(parts) == 1 else threads
    idle: Callable[[], object] | None = getattr(_listening, "call", None)
    shares = _Shares(call, len(parts), workers, idle) if idle else call
    pool = _pools.of(workers, threads // workers)
    running = [pool.submit(shares, part) for part in parts]
    errors = [error for one in running if (error := one.exception()) is not None]
    if errors:
        raise errors[0]
    return [one.result() for one in running]


@contextmanager
def on_idle_core(call: Callable[[], object] | None) -> Iterator[None]:
    """Have `call` made when a core has no part left of a batch that this thread maps within.

    For who could use that core while the others go on: parts that another thread maps then begin on
    it. The call comes from the thread of a core, maybe more than once.

    Args:
        call: None where, within the call of another, more parts are to come.
    """
    before = getattr(_listening, "call", None)
    _listening.call = call
    try:
        yield
    finally:
        _listening.call = before


_listening = threading.local()


class _Shares(Generic[T, R]):
    """Computes the parts of a batch, and calls `idle` when a core has none and none is left."""

    def __init__(
        self, call: Callable[[T], R], parts: int, cores: int, idle: Callable[[], object]
    ) -> None:
        self._call = call
        self._left = parts
        self._cores = cores
        self._idle = idle
        self._busy = 0
        self._lock = threading.Lock()

    def __call__(self, part: T) -> R:
        self._count(begins=True)
        try:
            return self._call(part)
        finally:
            self._count(begins=False)

    def _count(self, *, begins: bool) -> None:
        with self._lock:
            self._left -= begins
            self._busy += 1 if begins else -1
            is_idle = not self._left and self._busy < self._cores
        if is_idle:
            self._idle()


class _Pools:
    """One pool for each number of workers, and of threads that each computes with."""

    def __init__(self) -> None:
        self._pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
        self._lock = threading.Lock()

    def of(self, workers: int, threads: int) -> ThreadPoolExecutor:
        with self._lock:
            if (workers, threads) not in self._pools:
                self._pools[workers, threads] = _start(workers, threads)
            return self._pools[workers, threads]

    def forget(self) -> None:
        """In a forked process, which has the pools of its parent and none of their threads."""
        self._pools = {}
        self._lock = threading.Lock()


def _start(workers: int, threads: int) -> ThreadPoolExecutor:
    """A pool whose workers have all begun, so that the count of this thread can be set back."""
    before = torch.get_num_threads()
    together = threading.Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first look sets the thread's count, and would do so later
        torch.set_num_threads(threads)
        together.wait(_START_LIMIT_S)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="core", initializer=begin)
    for _ in range(workers):
        pool.submit(int)
    together.wait(_START_LIMIT_S)
    torch.set_num_threads(before)  # it is the default of threads to come as well
    return pool


_pools = _Pools()
os.register_at_fork(after_in_child=_pools.forget)
