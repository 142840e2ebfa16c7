"""The text tower: a Hugging Face encoder, whose feature is the masked mean of its tokens.

Shape letters: B batch, L tokens, D width, V vocabulary, W width of the word embeddings.
"""

from __future__ import annotations

from typing import cast

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from cots_model.config import TextTowerConfig
from cots_model.errors import ConfigError


class TextTower(nn.Module):
    """Any BERT-style encoder of Hugging Face, without its pooler.

    The paper's is BERT-base: `[B,L]` → `[B,L,768]`, 108,891,648 parameters.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        """Build the network with random weights.

        Raises:
            ConfigError: for a model type or options that Hugging Face does not take.
        """
        super().__init__()
        try:
            known = AutoConfig.for_model(config.arch).to_dict().keys()
            unknown = sorted(config.options.keys() - known)
            if unknown:  # Hugging Face would silently take them
                raise ValueError(f"unknown options {unknown}")
            settings = AutoConfig.for_model(config.arch, **config.options)
            self.trunk = AutoModel.from_config(settings, add_pooling_layer=False)  # type: ignore[no-untyped-call]
        except (RuntimeError, TypeError, ValueError, StrictDataclassError) as err:
            raise ConfigError(
                f"transformers cannot build the text tower {config.arch!r} with options "
                f"{config.options} ({err}); choose a BERT-style encoder such as 'bert'"
            ) from err
        self.width = int(settings.hidden_size)
        self.max_tokens = int(settings.max_position_embeddings)
        self.vocab_size = int(settings.vocab_size)

    @property
    def word_embedding_VW(self) -> Tensor:
        """The word embeddings `[V,W]`, a parameter; W is D unless the network factorises them."""
        return cast(Tensor, self.trunk.get_input_embeddings().weight)

    def forward(self, tok_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """All token outputs, `[B,L,D]`; those of padding mean nothing."""
        output = self.trunk(input_ids=tok_BL, attention_mask=mask_BL.long())
        return cast(Tensor, output.last_hidden_state)

    def feature(self, tok_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """The text feature before projection: masked mean of the tokens, `[B,D]` (section 3.1)."""
        return masked_mean(self(tok_BL, mask_BL), mask_BL)


def masked_mean(h_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the valid tokens of each row, `[B,D]`; padding has no influence."""
    mask_BL1 = mask_BL.unsqueeze(-1)
    total_BD = h_BLD.masked_fill(~mask_BL1, 0.0).sum(dim=1)
    return total_BD / mask_BL1.sum(dim=1).clamp_min(1)
