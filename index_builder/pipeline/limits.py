"""What a decoding process may take: one thread, little priority, and a bound on its memory."""

from __future__ import annotations

import os
import sys
import warnings

NICE = 10
"""Below the encoder's threads, which would wait for each other while one of them is held up."""

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
    if hasattr(os, "nice"):
        os.nice(NICE)
    _silence()
    if sys.platform == "linux":
        _limit_memory(memory_bytes)


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
