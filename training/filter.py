"""The adaptive momentum filter (section 3.3): pairs that do not fit together teach nothing.

    result = AdaptiveMomentumFilter()(image_key_BE, text_key_BE, queues, step=step)
    loss = instance_loss(..., keep_B=result.keep_B)

Shape letters: B batch, N queue length, E joint width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.errors import TrainingError
from training.queues import PairQueues


@dataclass(frozen=True)
class FilterResult:
    """What the filter decided about one batch.

    Attributes:
        keep_B: bool, the pairs that the losses use; all while the filter is not active.
        similarity_B: momentum similarity of each pair, at least float32.
        mean: μ of the similarity queue's filled rows; NaN while it is empty.
        std: their population σ; NaN while it is empty.
        threshold: μ - num_sigmas σ.
        active: whether the queue was full, so that the threshold counted.
    """

    keep_B: Tensor
    similarity_B: Tensor
    mean: float
    std: float
    threshold: float
    active: bool


class AdaptiveMomentumFilter:
    """Keeps a pair iff its momentum similarity is above μ - num_sigmas σ, strictly (eq. 15).

    μ and σ are those of the similarity queue: the row-wise dot products of the two queues. The
    filter is active from the moment the queue is full (chosen: rows of untrained encoders say
    little, and few of them less).
    """

    def __init__(self, *, num_sigmas: float = 2.0) -> None:
        """`num_sigmas` is 2 in the paper's example.

        Raises:
            ValueError: if it is not finite.
        """
        if not math.isfinite(num_sigmas):
            raise ValueError(f"num_sigmas {num_sigmas} gives no threshold; use a number such as 2")
        self.num_sigmas = num_sigmas

    @torch.no_grad()
    def __call__(
        self, image_key_BE: Tensor, text_key_BE: Tensor, queues: PairQueues, *, step: int
    ) -> FilterResult:
        """Judge a batch by its keys, before they are enqueued.

        Args:
            image_key_BE: momentum image features, unit vectors.
            text_key_BE: momentum text features of the same pairs.
            queues: keys of earlier pairs.
            step: named in the error.

        Raises:
            TrainingError: if a similarity of the batch or of the queue is not finite.
        """
        similarity_B = pair_similarity(image_key_BE, text_key_BE)
        queue_F = pair_similarity(queues.image_NE, queues.text_NE)[queues.filled_N]
        _check_finite(similarity_B, f"the batch of step {step}")
        _check_finite(queue_F, f"the queue at step {step}")
        mean = queue_F.mean()
        std = (queue_F - mean).square().mean().sqrt()
        threshold = mean - self.num_sigmas * std
        active = len(queue_F) == len(queues)
        keep_B = similarity_B > threshold if active else torch.ones_like(similarity_B).bool()
        return FilterResult(keep_B, similarity_B, mean.item(), std.item(), threshold.item(), active)


def pair_similarity(image_NE: Tensor, text_NE: Tensor) -> Tensor:
    """Similarity `[N]` of each pair of unit vectors: their dot product, at least float32."""
    dtype = torch.promote_types(image_NE.dtype, torch.float32)
    return (image_NE.to(dtype) * text_NE.to(dtype)).sum(dim=1)


def _check_finite(similarity_B: Tensor, where: str) -> None:
    wrong = int((~similarity_B.isfinite()).sum())
    if wrong:
        raise TrainingError(
            f"{wrong} of {len(similarity_B)} momentum similarities in {where} are not finite; "
            "the encoders diverged: lower the lr, or resume from an earlier state"
        )
