"""The token-level losses: hidden patches (CMVM, eq. 1) and hidden words (CMLM, eq. 2).

Both are the cross-entropy of the hidden positions of kept pairs, mean over those positions; their
sum is the token-level loss (eq. 3). Only these positions pass through the head. Where there are
none it is a zero that is connected to the graph (chosen), so that every process of a group runs its
backward pass.

Shape letters: B batch, P patches, L text tokens, M hidden tokens, D width of the hidden state, G
width of the other modality's feature, V vocabulary, W width of the word embeddings.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from training.heads import LanguageTokenHead, VisionTokenHead
from training.masking import NOT_A_TARGET


class TokenLoss(NamedTuple):
    """A token-level loss.

    Attributes:
        loss: a scalar, at least float32; 0 where nothing is hidden or kept.
        accuracy: share of the hidden tokens that were named rightly, without gradient; 0 there too.
    """

    loss: Tensor
    accuracy: Tensor


def vision_token_loss(
    head: VisionTokenHead,
    h_BPD: Tensor,
    text_BG: Tensor,
    code_BP: Tensor,
    hidden_BP: Tensor,
    *,
    keep_B: Tensor | None = None,
) -> TokenLoss:
    """Cross-modal masked vision modelling (eq. 1).

    Args:
        head: the mask token among its weights is the one that hid the patches.
        h_BPD: patch tokens of the picture with hidden patches, prefix tokens cut off.
        text_BG: features of the paired, unmasked texts before projection, with gradient (chosen).
        code_BP: int64, the image tokenizer's code of each patch.
        hidden_BP: bool, true where a patch was hidden.
        keep_B: bool, the pairs that count (section 3.3); all without it.

    Raises:
        ValueError: if there is not one code and one token per patch.
    """
    if not h_BPD.shape[:2] == code_BP.shape == hidden_BP.shape:
        raise ValueError(
            f"{list(h_BPD.shape[:2])} patch tokens, {list(code_BP.shape)} codes, "
            f"{list(hidden_BP.shape)} flags; the image tokenizer's grid must be the image tower's"
        )
    chosen_BP = _kept(hidden_BP, keep_B)
    logits_MV = head(h_BPD[chosen_BP], text_BG[chosen_BP.nonzero()[:, 0]])
    return _mean_cross_entropy(logits_MV, code_BP[chosen_BP])


def language_token_loss(
    head: LanguageTokenHead,
    h_BLD: Tensor,
    image_BG: Tensor,
    label_BL: Tensor,
    word_VW: Tensor,
    *,
    keep_B: Tensor | None = None,
) -> TokenLoss:
    """Cross-modal masked language modelling (eq. 2).

    Args:
        head: for this text tower.
        h_BLD: tokens of the text with hidden words.
        image_BG: features of the paired pictures, nothing hidden, before projection, with gradient
            (chosen).
        label_BL: int64, the hidden words; -100 elsewhere.
        word_VW: word embeddings of the text tower.
        keep_B: bool, the pairs that count (section 3.3); all without it.
    """
    chosen_BL = _kept(label_BL != NOT_A_TARGET, keep_B)
    logits_MV = head(h_BLD[chosen_BL], image_BG[chosen_BL.nonzero()[:, 0]], word_VW)
    return _mean_cross_entropy(logits_MV, label_BL[chosen_BL])


def _kept(hidden_BP: Tensor, keep_B: Tensor | None) -> Tensor:
    return hidden_BP if keep_B is None else hidden_BP & keep_B[:, None]


def _mean_cross_entropy(logits_MV: Tensor, label_M: Tensor) -> TokenLoss:
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    count = max(1, len(label_M))
    loss = F.cross_entropy(logits_MV, label_M, reduction="sum") / count
    right = (logits_MV.detach().argmax(dim=1) == label_M).sum()
    return TokenLoss(loss, right / count)
