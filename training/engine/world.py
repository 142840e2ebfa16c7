"""The processes of one run, as `torchrun` starts them; a plain run is a world of one.

Shape letters: B rows of one rank.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor, distributed

from cots_model.encoder import resolve_device
from cots_model.errors import ConfigError, CotsError
from training.errors import TrainingError

TIMEOUT = timedelta(minutes=10)  # within a step; then a process is taken for lost
PATIENCE = timedelta(hours=24)  # while the main process scores or writes


@dataclass
class World:
    """Who this process is among the processes of the run.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        device: where its model runs.
        patient: all processes, connected through the CPU, with a long timeout; `None` if alone.
    """

    rank: int
    size: int
    device: torch.device
    patient: distributed.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and prints."""
        return self.rank == 0

    def gather(self, x: Tensor) -> Tensor:
        """Rows of every rank in rank order, `[B,…]` → `[size·B,…]`; B is the same everywhere."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def sum(self, x: Tensor) -> Tensor:
        """Element-wise sum over all ranks, without gradient."""
        total = x.detach().clone()
        if self.size > 1:
            distributed.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def barrier(self) -> None:
        """Wait for all ranks, however long one scores or writes."""
        if self.size > 1:
            distributed.barrier(group=self.patient)

    def gather_objects(self, value: Any) -> list[Any]:
        """A small value of every rank, in rank order."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value, group=self.patient)
        return values

    @contextmanager
    def together(self, *, patient: bool = False) -> Iterator[None]:
        """Where the body fails on one rank, all stop, instead of waiting for it.

        The body must not talk to other ranks. Errors that are no `CotsError` go through: the
        process ends, and `torchrun` ends the others.

        Args:
            patient: whether one rank may take much longer than the others.

        Raises:
            CotsError: its own where the body failed.
            TrainingError: on the other ranks, with the message of the first that failed.
        """
        if self.size == 1:
            yield
            return
        failure: CotsError | None = None
        try:
            yield
        except CotsError as err:
            failure = err
        if patient:
            self.barrier()
        if self.any(failure is not None):
            reasons = self.gather_objects(str(failure) if failure else None)
            raise failure or _elsewhere(reasons)


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the other processes of this run, if `torchrun` started some.

    What the body made with others (DDP, FSDP) must be out of reach when it ends: call a function.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; of several processes on GPUs each takes its own.

    Raises:
        ConfigError: if the device is not there, or names one GPU for several processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = resolve_device(device)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = _own_gpu(device)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    patient = distributed.new_group(backend="gloo", timeout=PATIENCE)
    world = World(distributed.get_rank(), size, chosen, cast(distributed.ProcessGroup, patient))
    del patient
    try:
        yield world
    except BaseException as err:
        _forget_locals(err)
        raise
    finally:
        _leave(world)


def _leave(world: World) -> None:
    """Let go of the process groups, which ends and joins their threads.

    A gloo thread may hold the last tensor of a collective a little longer than the caller. One
    that gives it back while the interpreter shuts down takes the process with it (SIGABRT). FSDP
    keeps the default group; what ran on it last is followed by a collective of the patient one.
    """
    world.patient = None
    distributed.destroy_process_group()
    gc.collect()


def _forget_locals(err: BaseException) -> None:
    """Clear the functions that `err` has left, which keep models and groups alive."""
    left: list[BaseException | None] = [err]
    seen: set[int] = set()
    while left:
        error = left.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            left += [error.__cause__, error.__context__]


def _elsewhere(reasons: list[str | None]) -> TrainingError:
    rank, reason = next((rank, text) for rank, text in enumerate(reasons) if text is not None)
    return TrainingError(f"process {rank} of {len(reasons)} failed: {reason}")


def _own_gpu(device: str) -> torch.device:
    if ":" in device:
        raise ConfigError(f"device {device!r} is one GPU for several processes; use 'cuda'")
    local, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= available:
        raise ConfigError(
            f"process {local} of this machine has no GPU of its own, there are {available}; "
            f"start torchrun with --nproc-per-node={available}"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
