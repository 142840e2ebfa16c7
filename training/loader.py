"""Steps made into batches, by this process or ahead of time by others; in the steps' order."""

from __future__ import annotations

import atexit
import multiprocessing
import re
import signal
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from cots_model.errors import CotsError

S = TypeVar("S")
T = TypeVar("T")

_ENDED = re.compile(r"worker.*(exited unexpectedly|is killed by signal)", re.S)
_PRELOAD = ["training.batches"]


def prepare_all(
    make: Callable[[S], T], steps: Iterator[S], *, num_workers: int, ahead: int = 2
) -> Iterator[T]:
    """`make(step)` for every step, in order, whatever the number of workers.

    Args:
        make: can be pickled, and depends on nothing but the step.
        steps: read in this process, at most `ahead * num_workers` too far.
        num_workers: processes; 0 for this one.
        ahead: batches that each worker may have ready.

    Raises:
        CotsError: of `make`, or if a worker dies.
    """
    if num_workers == 0:
        yield from map(make, steps)
        return
    before = set(multiprocessing.active_children())
    results = _started(make, steps, num_workers, ahead)
    end = partial(_end, set(multiprocessing.active_children()) - before)
    atexit.register(end)
    try:
        for result in results:
            if isinstance(result, CotsError):
                raise result
            yield result
    except RuntimeError as err:
        if not _ENDED.search(str(err)):
            raise
        raise CotsError(
            f"a loading process ended ({' '.join(str(err).split())}); there may be too little "
            "memory for so many: lower data.num_workers"
        ) from err
    finally:
        del results  # which ends the processes, unless an error's traceback still holds it
        end()
        atexit.unregister(end)


def batched(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Parts of `size`, in order; the last may be short."""
    return (values[start : start + size] for start in range(0, len(values), size))


def _started(
    make: Callable[[Any], Any], steps: Iterator[Any], num_workers: int, ahead: int
) -> Iterator[Any]:
    context = multiprocessing.get_context("forkserver")  # inherits no thread, lock or GPU context
    context.set_forkserver_preload(_PRELOAD)
    with warnings.catch_warnings():  # the user chose how many
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader: DataLoader[Any] = DataLoader(
            _Made(make),
            sampler=steps,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=ahead,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals_to_main,
            multiprocessing_context=context,
            generator=torch.Generator(),  # or it would draw from the run's own
        )
        return iter(loader)


def _end(workers: Collection[BaseProcess]) -> None:
    """At exit, multiprocessing would wait for them for ever: they ignore the signal it sends."""
    for worker in workers:
        worker.kill()


class _Made(Dataset[Any]):
    """What `make` makes of a step, which takes the place of an index."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, step: Any) -> Any:
        try:
            return self._make(step)
        except CotsError as err:  # handed over as it is: the loader would rewrite its message
            return err


def _leave_signals_to_main(_worker: int) -> None:
    """Ctrl-C reaches the whole process group: the main process ends its step, then the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(result: Any) -> Any:
    return result
