"""What predicts hidden tokens from a hidden state and the other modality (eq. 1 and 2).

The other modality's feature, before projection, is added to the hidden state. Where the two differ
in width, one Linear maps the feature (chosen; the paper's are both 768 wide).

    vision = VisionTokenHead(hidden_width=768, feature_width=768, num_codes=8192)
    language = LanguageTokenHead(hidden_width=768, feature_width=768, vocab_size=30522)
    initialise_language_head(language, "bert-base-uncased")  # training.initialise

Shape letters: M hidden tokens, D width of the hidden state, G width of the other modality's
feature, V vocabulary, W width of the word embeddings.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VisionTokenHead(nn.Module):
    """CMVM's mask token and classifier: Linear(D→V)(h + g) (eq. 1)."""

    def __init__(self, *, hidden_width: int, feature_width: int, num_codes: int = 8192) -> None:
        """Draw the weights as BEiT does: normal, deviation 0.02 (chosen).

        Args:
            hidden_width: D, of the image tower's tokens.
            feature_width: G, of the text feature.
            num_codes: V, of the image tokenizer (paper: 8,192).
        """
        super().__init__()
        self.mask_token_D = nn.Parameter(torch.empty(hidden_width).normal_(std=0.02))
        self.fuse = _fuse(feature_width, hidden_width)
        self.decoder = _linear(hidden_width, num_codes)

    def forward(self, h_MD: Tensor, text_MG: Tensor) -> Tensor:
        """Logits `[M,V]` of hidden patches' states and the text features of their pairs."""
        return cast(Tensor, self.decoder(h_MD + self.fuse(text_MG)))


class LanguageTokenHead(nn.Module):
    """CMLM's classifier: BERT's masked language model head on h + g (eq. 2).

    Its decoder is the word embeddings, which stay the text tower's: they are passed in.
    """

    def __init__(
        self,
        *,
        hidden_width: int,
        feature_width: int,
        vocab_size: int,
        word_width: int | None = None,
        norm_eps: float = 1e-12,
    ) -> None:
        """Draw the weights as BERT does: normal, deviation 0.02.

        Args:
            hidden_width: D, of the text tower's tokens.
            feature_width: G, of the image feature.
            vocab_size: V, of the text tower.
            word_width: W, of its word embeddings; D without it.
            norm_eps: of the layer norm (BERT: 1e-12).
        """
        super().__init__()
        word_width = hidden_width if word_width is None else word_width
        self.fuse = _fuse(feature_width, hidden_width)
        self.dense = _linear(hidden_width, word_width)
        self.norm = nn.LayerNorm(word_width, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, h_MD: Tensor, image_MG: Tensor, word_VW: Tensor) -> Tensor:
        """Logits `[M,V]` of hidden words' states and the image features of their pairs.

        Args:
            h_MD: hidden states.
            image_MG: image features before projection.
            word_VW: word embeddings of the text tower, with gradient (tied, as in BERT).
        """
        transformed_MW = self.norm(F.gelu(self.dense(h_MD + self.fuse(image_MG))))
        return F.linear(transformed_MW, word_VW, self.bias)


def _fuse(feature_width: int, hidden_width: int) -> nn.Module:
    same = feature_width == hidden_width
    return nn.Identity() if same else _linear(feature_width, hidden_width)


def _linear(width_in: int, width_out: int) -> nn.Linear:
    linear = nn.Linear(width_in, width_out)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
