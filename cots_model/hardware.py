"""The machine behind a measurement."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Hardware:
    """The machine, as far as it matters for speed.

    Attributes:
        cpu: its name.
        cores: cores this process may use.
        threads: CPU threads that PyTorch uses.
        gpu: its name, if the model ran on one.
        memory_gib: main memory; 0 where the system does not say.
        system: operating system and architecture.
    """

    cpu: str
    cores: int
    threads: int
    gpu: str | None
    memory_gib: float
    system: str

    def summary(self) -> str:
        """One line."""
        return f"{self.gpu or self.cpu} ({self.threads} of {self.cores} CPU cores)"


def describe_hardware(device: torch.device) -> Hardware:
    """Look at the machine on which a model on `device` runs."""
    known = hasattr(os, "sysconf")  # not on Windows
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 0
    return Hardware(
        cpu=_cpu_name(),
        cores=num_cores(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        memory_gib=round(memory / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    )


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
