"""What a decoding process may take: one thread, idle time of a core, and a bound on its memory."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

NICE = 10
"""Below the encoder's threads, where no process can be asked to run in idle time alone."""

IMAGE_MEMORY_BYTES = 1024 * 1024 * 1024
"""For any picture of `cots_model.images.MAX_PIXELS`: WebP takes most, about 760 MB."""

VIDEO_MEMORY_BYTES = 2 * 1024 * 1024 * 1024
"""A decoder keeps some 16 frames at once, and those of 8K are 50 to 100 MB each."""


def restrict_process(memory_bytes: int) -> None:
    """Settle down as a decoding process: call it once all imports are done.

    Args:
        memory_bytes: how much private memory may be added to what is in use now. More is refused
            by the system, so that a decoder meets a `MemoryError` or its like (Linux only).
    """
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _stand_back()
    _silence()
    if sys.platform == "linux":
        _limit_memory(memory_bytes)


def _stand_back() -> None:
    """Take only what the encoder leaves: its threads wait for each other while one is held up.

    Where it leaves nothing it soon has nothing to encode, and waits.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # forbidden in some containers
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return
    if hasattr(os, "nice"):
        os.nice(NICE)


def step_forward(pid: int) -> None:
    """Have a decoding process compete for a core, on a machine that other work keeps busy."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):  # it may have ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


@dataclass(frozen=True)
class Usage:
    """What a process has had.

    Attributes:
        cpu_s: time on a core, of all its threads.
        runs: whether it runs, or would if it were given a core.
    """

    cpu_s: float
    runs: bool


def usage_of(pid: int) -> Usage | None:
    """What a process has had; `None` where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return Usage(ticks / os.sysconf("SC_CLK_TCK"), fields[0] == "R")
    except (OSError, ValueError, IndexError):
        return None


def _silence() -> None:
    """Send what decoding libraries write about damaged files to nowhere: the skips tell it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _limit_memory(memory_bytes: int) -> None:
    """Bound private writable memory: file mappings and address space kept free do not count."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _private_bytes() + memory_bytes
    if most == resource.RLIM_INFINITY or limit < most:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _private_bytes() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
