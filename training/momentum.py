"""Momentum encoders (eq. 4 and 5): slow copies of the encoders, which make the keys."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class MomentumCopy(Generic[M]):
    """A copy of a module that follows it by an exponential moving average.

    Equal at the start, float32 always (a bf16 average would stall), in evaluation mode (chosen:
    keys without dropout noise) and without gradient.
    """

    def __init__(self, online: M, *, momentum: float = 0.99) -> None:
        """Copy `online`; `momentum` is m of eq. 4 and 5."""
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum {momentum} is no average; use a number in [0, 1]")
        self.momentum = momentum
        self.module: M = copy.deepcopy(online).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, online: M) -> None:
        """θ' ← m θ' + (1 - m) θ, once per optimiser step; buffers are copied.

        Parameters the optimiser does not train are equal in both and are passed over.
        """
        for slow, fast in zip(self.module.parameters(), online.parameters(), strict=True):
            if fast.requires_grad:
                slow.lerp_(fast.to(slow.dtype), 1.0 - self.momentum)
        for slow_buffer, fast_buffer in zip(self.module.buffers(), online.buffers(), strict=True):
            slow_buffer.copy_(fast_buffer)
