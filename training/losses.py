"""The instance-level loss (section 3.2, eq. 6-10): momentum contrast in both directions.

Shape letters: B batch, N queue length, E joint width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class InstanceLoss:
    """Both directions, each a scalar mean over the batch; `total` is their sum (eq. 10)."""

    image_to_text: Tensor
    text_to_image: Tensor

    @property
    def total(self) -> Tensor:
        """L_inst = L_I2T + L_T2I."""
        return self.image_to_text + self.text_to_image


def contrast_logits(
    query_BE: Tensor, key_BE: Tensor, queue_NE: Tensor, negative_BN: Tensor, *, temperature: float
) -> Tensor:
    """Logits `[B,1+N]`: the positive first, then the queue (eq. 6 and 8).

    Keys of the current batch are not negatives. The result is at least float32.

    Args:
        query_BE: online features of one modality, unit vectors.
        key_BE: momentum features of the other modality, same pairs.
        queue_NE: earlier momentum features of the other modality.
        negative_BN: bool, true where a queue row is a negative of that query; others weigh nothing.
        temperature: τ.
    """
    dtype = torch.promote_types(query_BE.dtype, torch.float32)
    query_BE, key_BE, queue_NE = query_BE.to(dtype), key_BE.to(dtype), queue_NE.to(dtype)
    positive_B1 = (query_BE * key_BE).sum(dim=1, keepdim=True)
    queue_BN = (query_BE @ queue_NE.T).masked_fill(~negative_BN, -torch.inf)
    return torch.cat([positive_B1, queue_BN], dim=1) / temperature


def contrast_loss(logits_BC: Tensor) -> Tensor:
    """Cross-entropy with the positive in column 0, mean over the batch (eq. 7 and 9)."""
    return -F.log_softmax(logits_BC, dim=1)[:, 0].mean()


def instance_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    image_key_BE: Tensor,
    text_key_BE: Tensor,
    image_queue_NE: Tensor,
    text_queue_NE: Tensor,
    negative_BN: Tensor,
    *,
    temperature: float = 0.05,
) -> InstanceLoss:
    """Instance-level interaction (eq. 6-10).

    Args:
        image_BE: online image features, unit vectors, with gradient.
        text_BE: online text features of the same pairs.
        image_key_BE: momentum image features.
        text_key_BE: momentum text features.
        image_queue_NE: image keys of earlier pairs.
        text_queue_NE: text keys of the same earlier pairs.
        negative_BN: bool, which queue rows are negatives of which pair.
        temperature: τ, fixed at 0.05 in the paper.
    """
    i2t_BC = contrast_logits(
        image_BE, text_key_BE, text_queue_NE, negative_BN, temperature=temperature
    )
    t2i_BC = contrast_logits(
        text_BE, image_key_BE, image_queue_NE, negative_BN, temperature=temperature
    )
    return InstanceLoss(contrast_loss(i2t_BC), contrast_loss(t2i_BC))


def negatives(
    filled_N: Tensor, queue_image_id_N: Tensor, image_id_B: Tensor, *, mask_same_image: bool
) -> Tensor:
    """Bool `[B,N]`: filled queue rows, without other captions of the same picture if masked.

    Such captions are true matches, so as negatives they teach the wrong thing (chosen: the paper
    does not say; its web pictures have one caption each).
    """
    negative_BN = filled_N.expand(len(image_id_B), -1)
    if mask_same_image:
        negative_BN = negative_BN & (queue_image_id_N[None, :] != image_id_B[:, None])
    return negative_BN
