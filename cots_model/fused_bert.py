"""The layers of a BERT for inference on a CPU: each one call of PyTorch, not some thirty.

After every call a thread needs the interpreter again. In a server it waits there for the one that
answers requests, so that a text took up to twice as long; and a single text is mostly such calls.

Shape letters: B batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

from cots_model.text_tower import TextTower, masked_mean


class FusedBert:
    """A BERT text tower, its weights shared with the tower they are of (until either is moved).

    `torch.nn.TransformerEncoderLayer` computes a layer whole when nothing has to be differentiated;
    what it gives differs from the tower's by rounding alone.
    """

    def __init__(self, tower: TextTower) -> None:
        """Take a tower that `can_fuse` accepts; its layout in memory changes, its values don't."""
        trunk = cast(BertModel, tower.trunk)
        self._embeddings = trunk.embeddings
        self._layers = [_fuse(cast(BertLayer, layer), trunk) for layer in trunk.encoder.layer]

    def feature(self, tok_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """The text feature before projection, as `TextTower.feature`: `[B,D]`."""
        h_BLD: Tensor = self._embeddings(input_ids=tok_BL)
        padding_BL = ~mask_BL
        for layer in self._layers:
            h_BLD = layer(h_BLD, src_key_padding_mask=padding_BL)
        return masked_mean(h_BLD, mask_BL)


def can_fuse(tower: TextTower) -> bool:
    """Whether a tower is a plain BERT: other networks have layers of other kinds."""
    trunk = tower.trunk
    if type(trunk) is not BertModel:
        return False
    config = trunk.config
    return (
        config.hidden_act == "gelu"
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and config.num_attention_heads % 2 == 0
        and not config.is_decoder
        and next(trunk.parameters()).dtype == torch.float32
    )


def _fuse(layer: BertLayer, trunk: BertModel) -> nn.TransformerEncoderLayer:
    config = trunk.config
    fused = nn.TransformerEncoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        activation="gelu",
        layer_norm_eps=config.layer_norm_eps,
        batch_first=True,
        device="meta",
    )
    attention = layer.attention
    parts = [attention.self.query, attention.self.key, attention.self.value]
    fused.self_attn.in_proj_weight = _join([part.weight for part in parts])
    fused.self_attn.in_proj_bias = _join([part.bias for part in parts])
    fused.self_attn.out_proj.weight = attention.output.dense.weight
    fused.self_attn.out_proj.bias = attention.output.dense.bias
    fused.norm1, fused.norm2 = attention.output.LayerNorm, layer.output.LayerNorm
    fused.linear1, fused.linear2 = layer.intermediate.dense, layer.output.dense
    return fused.eval()


def _join(parts: Sequence[Tensor]) -> nn.Parameter:
    """One parameter of all rows, of which the parts become views."""
    joined = torch.cat([part.detach() for part in parts])
    for part, rows in zip(parts, joined.chunk(len(parts)), strict=True):
        part.data = rows
    return nn.Parameter(joined, requires_grad=False)
