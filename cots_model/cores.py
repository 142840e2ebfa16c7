"""The parts of a batch on a CPU, each computed by a core of its own.

Cores that share a layer end together, when the slowest has done its share; one that something else
takes away for a moment holds up all of them, at every layer. Cores that have a part each wait for
nobody: on a machine that also decodes or answers requests that is a fifth faster.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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
    must not depend on the number of threads. A single part has all of them.

    Raises:
        Exception: the first that `call` raises, after all parts have ended.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) <= 1:
        return [call(part) for part in parts]
    running = [_pools.of(threads).submit(call, part) for part in parts]
    errors = [error for one in running if (error := one.exception()) is not None]
    if errors:
        raise errors[0]
    return [one.result() for one in running]


class _Pools:
    """One pool of single-threaded threads for each number of threads that was asked for."""

    def __init__(self) -> None:
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()

    def of(self, threads: int) -> ThreadPoolExecutor:
        with self._lock:
            if threads not in self._pools:
                self._pools[threads] = _start(threads)
            return self._pools[threads]

    def forget(self) -> None:
        """In a forked process, which has the pools of its parent and none of their threads."""
        self._pools = {}
        self._lock = threading.Lock()


def _start(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads have all begun, so that the count of this one can be set back."""
    together = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first look sets the thread's count, and would do so later
        torch.set_num_threads(1)
        together.wait(_START_LIMIT_S)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="core", initializer=begin)
    for _ in range(threads):
        pool.submit(int)
    together.wait(_START_LIMIT_S)
    torch.set_num_threads(threads)  # it is the default of threads to come as well
    return pool


_pools = _Pools()
os.register_at_fork(after_in_child=_pools.forget)
