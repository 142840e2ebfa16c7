"""How fast a run is: pairs, floating point operations, and what share of the device's they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.batches import Batch
from training.config import TrainConfig
from training.engine.flops import Flops, StepFlops
from training.engine.stepper import Stepper


@dataclass(frozen=True)
class Peak:
    """Most operations per second of one device, in 10^12; without sparsity.

    Attributes:
        bf16: of its tensor cores.
        tf32: of its tensor cores with float32 numbers, as torch does convolutions of float32.
        fp32: outside them, as torch multiplies matrices of float32.
    """

    bf16: float
    tf32: float
    fp32: float

    def seconds(self, flops: Flops, precision: str) -> float:
        """Of so many operations at this speed."""
        tflops_per_s = self.bf16 if precision == "bf16" else self.fp32
        return (flops.networks / tflops_per_s + flops.tokenizer / self.tf32) / 1e12


# NVIDIA's data sheets of the A100, H100, H200 and L40S; figures with sparsity are halved. The first
# pattern that is found in the device's name counts.
_PEAKS = (
    (r"\bH200 NVL\b", Peak(835.5, 417.5, 60.0)),
    (r"\bH200\b", Peak(989.5, 494.5, 67.0)),
    (r"\bH100 NVL\b", Peak(835.5, 417.5, 60.0)),
    (r"\bH100 PCIe\b", Peak(756.5, 378.0, 51.0)),
    (r"\bH100\b", Peak(989.5, 494.5, 67.0)),
    (r"\bA100\b", Peak(312.0, 156.0, 19.5)),
    (r"\bL40S\b", Peak(362.05, 183.0, 91.6)),
)


def peak_of(name: str) -> Peak | None:
    """Of a GPU by the name its driver gives; `None` if it is unknown or a part of one (MIG)."""
    if "MIG" in name:
        return None
    return next((peak for pattern, peak in _PEAKS if re.search(pattern, name)), None)


class Speed:
    """Turns the time of a step into figures for the log."""

    def __init__(self, config: TrainConfig, stepper: Stepper) -> None:
        """Count what a step of this run computes; takes seconds for large models."""
        self._pairs = config.batch_size * config.accumulate * stepper.world.size
        self._flops = StepFlops(config, stepper.objective, stepper.hider.tokenizer)
        device = stepper.world.device
        self._peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._precision, self._device = config.precision, device
        self.forget_peak()

    def forget_peak(self) -> None:
        """Start anew with the most memory: scoring a checkpoint is no part of training."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def figures(
        self, batches: Sequence[Batch], *, step_s: float, wait_s: float
    ) -> dict[str, float]:
        """Of a step.

        `speed/pairs_per_s` is of all processes; `speed/tflops_per_s` and `speed/mfu` are of this
        one's device, the latter left out where its peak is unknown: what the step would take at
        it, of what it took. All are over the whole time, waiting included; `speed/mfu_computing`
        is that of the step alone. `speed/peak_memory_gib` is the most memory that its tensors have
        taken, on a GPU.

        Args:
            batches: of the step.
            step_s: seconds of the step.
            wait_s: seconds between the step before and it: for data, and for saving and logging.
        """
        flops, whole_s = self._flops(batches), step_s + wait_s
        figures = {
            "speed/step_s": step_s,
            "speed/wait_s": wait_s,
            "speed/pairs_per_s": self._pairs / whole_s,
            "speed/tflops_per_s": flops.total / whole_s / 1e12,
        }
        if self._device.type == "cuda":
            figures["speed/peak_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        if self._peak:
            ideal_s = self._peak.seconds(flops, self._precision)
            figures["speed/mfu"] = ideal_s / whole_s
            figures["speed/mfu_computing"] = ideal_s / step_s
        return figures
