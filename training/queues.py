"""The two momentum queues (section 3.2): keys of past pairs, the negatives of the instance loss.

Shape letters: B batch, N queue length, E joint width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PairQueues(nn.Module):
    """Image keys and text keys of the last N pairs, under one pointer: row j of both is one pair.

    N need not be a multiple of the batch: writing wraps around. Rows never written are marked, so
    that no loss sees them.
    """

    image_NE: Tensor
    text_NE: Tensor
    image_id_N: Tensor
    pointer: Tensor
    fill: Tensor

    def __init__(self, length: int, dim: int, *, dtype: torch.dtype = torch.float32) -> None:
        """Make empty queues; all state is in buffers, so a state dict resumes exactly."""
        super().__init__()
        if length < 1:
            raise ValueError(f"queue length {length} leaves no negatives; use at least 1")
        self.register_buffer("image_NE", torch.zeros(length, dim, dtype=dtype))
        self.register_buffer("text_NE", torch.zeros(length, dim, dtype=dtype))
        self.register_buffer("image_id_N", torch.full((length,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("fill", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Queue length N, filled or not."""
        return len(self.image_NE)

    @property
    def filled_N(self) -> Tensor:
        """Bool `[N]`: rows that hold a pair."""
        return torch.arange(len(self), device=self.fill.device) < self.fill

    @torch.no_grad()
    def spread(self) -> tuple[float, float]:
        """How far the image rows and the text rows point apart: 1 - |their mean|, 0 to 1.

        0 where all are one and the same; NaN of fewer than two rows, which cannot differ.
        """
        fill = int(self.fill)
        if fill < 2:
            return math.nan, math.nan
        means = [rows_NE.float().sum(dim=0) / fill for rows_NE in (self.image_NE, self.text_NE)]
        image, text = (1 - torch.stack(means).norm(dim=1)).clamp(min=0).tolist()
        return image, text

    @torch.no_grad()
    def enqueue(self, image_key_BE: Tensor, text_key_BE: Tensor, image_id_B: Tensor) -> None:
        """Put B pairs in place of the oldest; of a batch longer than N the last N stay.

        Args:
            image_key_BE: momentum image features, unit vectors.
            text_key_BE: momentum text features, unit vectors.
            image_id_B: int64, which picture each pair shows; for masking its other captions.
        """
        length, batch = len(self), len(image_key_BE)
        kept = min(batch, length)
        row_K = (self.pointer + batch - kept + torch.arange(kept, device=self.fill.device)) % length
        self.image_NE[row_K] = image_key_BE[-kept:].to(self.image_NE.dtype)
        self.text_NE[row_K] = text_key_BE[-kept:].to(self.text_NE.dtype)
        self.image_id_N[row_K] = image_id_B[-kept:]
        self.pointer.copy_((self.pointer + batch) % length)
        self.fill.copy_((self.fill + batch).clamp(max=length))
