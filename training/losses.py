"""The losses of two whole features: instance level (eq. 6-10) and task level (eq. 11-14).

Momentum contrast in both directions, and the agreement of the two directions' distributions, which
is computed on the very same logits:

    loss = instance_loss(..., keep_B=result.keep_B)
    total = loss.total + task_loss(loss.i2t_BC, loss.t2i_BC, keep_B=result.keep_B)

Every loss is the mean over the pairs kept by the filter (section 3.3). Where nothing is kept it is
a zero that is connected to the graph (chosen), so that every process of a group runs its backward
pass. Rows of dropped pairs reach neither the loss nor a gradient, whatever they hold.

Shape letters: B batch, N queue length, C = 1 + N candidates, E joint width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class InstanceLoss:
    """Both directions, and the logits they were computed from.

    Attributes:
        image_to_text: scalar, mean over the kept pairs (eq. 6).
        text_to_image: scalar, likewise (eq. 9).
        i2t_BC: image-to-text logits `[B,1+N]`, of every pair, at least float32.
        t2i_BC: text-to-image logits, likewise.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    i2t_BC: Tensor
    t2i_BC: Tensor

    @property
    def total(self) -> Tensor:
        """L_inst = L_I2T + L_T2I (eq. 10)."""
        return self.image_to_text + self.text_to_image


def contrast_logits(
    query_BE: Tensor, key_BE: Tensor, queue_NE: Tensor, negative_BN: Tensor, *, temperature: float
) -> Tensor:
    """Logits `[B,1+N]`: the positive first, then the queue (eq. 7 and 8).

    Keys of the current batch are not negatives. The result is at least float32, in autocast too.

    Args:
        query_BE: online features of one modality, unit vectors.
        key_BE: momentum features of the other modality, same pairs.
        queue_NE: earlier momentum features of the other modality.
        negative_BN: bool, true where a queue row is a negative of that query; others weigh nothing.
        temperature: τ.
    """
    dtype = torch.promote_types(query_BE.dtype, torch.float32)
    query_BE, key_BE, queue_NE = query_BE.to(dtype), key_BE.to(dtype), queue_NE.to(dtype)
    with torch.autocast(query_BE.device.type, enabled=False):
        positive_B1 = (query_BE * key_BE).sum(dim=1, keepdim=True)
        queue_BN = (query_BE @ queue_NE.T).masked_fill(~negative_BN, -torch.inf)
        return torch.cat([positive_B1, queue_BN], dim=1) / temperature


def contrast_loss(logits_BC: Tensor, keep_B: Tensor | None = None) -> Tensor:
    """Cross-entropy with the positive in column 0, mean over the kept pairs (eq. 6 and 9).

    Args:
        logits_BC: `[B,1+N]`, -inf in columns that weigh nothing.
        keep_B: bool, the pairs that count; all without it.

    Returns:
        A scalar; 0 where nothing is kept.
    """
    loss_B = -F.log_softmax(_without_dropped(logits_BC, keep_B), dim=1)[:, 0]
    return _mean_of_kept(loss_B, keep_B)


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
    keep_B: Tensor | None = None,
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
        keep_B: bool, the pairs that count (section 3.3); all without it.
    """
    i2t_BC = contrast_logits(
        image_BE, text_key_BE, text_queue_NE, negative_BN, temperature=temperature
    )
    t2i_BC = contrast_logits(
        text_BE, image_key_BE, image_queue_NE, negative_BN, temperature=temperature
    )
    return InstanceLoss(
        contrast_loss(i2t_BC, keep_B), contrast_loss(t2i_BC, keep_B), i2t_BC, t2i_BC
    )


def task_loss(i2t_BC: Tensor, t2i_BC: Tensor, *, keep_B: Tensor | None = None) -> Tensor:
    """Task-level interaction (eq. 11-14): KL(I2T‖T2I) + KL(T2I‖I2T), their sum, not their mean.

    Both are one sum over the candidates, of (p - q)(log p - log q). It is computed in log-space, at
    least in float32, and sends gradient to both sides (chosen: the paper stops neither).

    Args:
        i2t_BC: image-to-text logits `[B,1+N]`, as `instance_loss` gives them.
        t2i_BC: text-to-image logits; column j of both is one pair. Columns that weigh nothing are
            -inf in both.
        keep_B: bool, the pairs that count (section 3.3); all without it.

    Returns:
        A scalar, mean over the kept pairs; 0 where nothing is kept.
    """
    dtype = torch.promote_types(i2t_BC.dtype, torch.float32)
    i2t_BC = _without_dropped(i2t_BC.to(dtype), keep_B)
    t2i_BC = _without_dropped(t2i_BC.to(dtype), keep_B)
    absent_BC = i2t_BC.isneginf() & t2i_BC.isneginf()
    log_p_BC = F.log_softmax(i2t_BC, dim=1).masked_fill(absent_BC, 0.0)
    log_q_BC = F.log_softmax(t2i_BC, dim=1).masked_fill(absent_BC, 0.0)
    divergence_BC = (log_p_BC.exp() - log_q_BC.exp()) * (log_p_BC - log_q_BC)
    return _mean_of_kept(divergence_BC.sum(dim=1), keep_B)


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


def _without_dropped(logits_BC: Tensor, keep_B: Tensor | None) -> Tensor:
    """Zeros in the rows of dropped pairs: a loss of such a row is finite, its gradient zero."""
    return logits_BC if keep_B is None else logits_BC.masked_fill(~keep_B[:, None], 0.0)


def _mean_of_kept(loss_B: Tensor, keep_B: Tensor | None) -> Tensor:
    if keep_B is None:
        return loss_B.mean()
    return loss_B.masked_fill(~keep_B, 0.0).sum() / keep_B.sum().clamp_min(1)
