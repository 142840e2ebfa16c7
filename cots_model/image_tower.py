"""The image tower: a timm vision transformer, whose feature is the CLS token.

Shape letters: B batch, P tokens (prefix tokens and patches), D width, H and W pixels.
"""

from __future__ import annotations

from typing import cast

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cots_model.config import ImageTowerConfig
from cots_model.errors import ConfigError


class ImageTower(nn.Module):
    """Any timm vision transformer with a class token, hybrids included, without its head.

    The paper's is `vit_base_patch16_384`: `[B,3,384,384]` → `[B,577,768]`, 86,090,496 parameters.
    """

    def __init__(self, config: ImageTowerConfig) -> None:
        """Build the network with random weights.

        Raises:
            ConfigError: for a name timm does not know, options it does not take, or a network that
                is no vision transformer with a class token.
        """
        super().__init__()
        self.trunk = _create(config)
        self.width = self.trunk.embed_dim

    def forward(self, img_BCHW: Tensor) -> Tensor:
        """All token outputs after the final norm, `[B,P,D]`; the class token comes first."""
        return self.trunk.forward_features(img_BCHW)

    def feature(self, img_BCHW: Tensor) -> Tensor:
        """The image feature before projection: CLS after the final norm, `[B,D]`."""
        return cast(Tensor, self(img_BCHW))[:, 0]

    def forward_prefix(self, img_BCHW: Tensor, num_blocks: int) -> Tensor:
        """Tokens after the embedding and the first `num_blocks` blocks, `[B,P,D]`.

        Training that freezes these computes them once and caches them; `forward_suffix` goes on.
        """
        trunk = self.trunk
        tok_BPD = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(img_BCHW)))
        for block in trunk.blocks[:num_blocks]:
            tok_BPD = block(tok_BPD)
        return cast(Tensor, tok_BPD)

    def forward_suffix(self, tok_BPD: Tensor, num_blocks: int) -> Tensor:
        """The blocks after the first `num_blocks`, and the final norm, `[B,P,D]`."""
        for block in self.trunk.blocks[num_blocks:]:
            tok_BPD = block(tok_BPD)
        return cast(Tensor, self.trunk.norm(tok_BPD))

    def prefix_parameters(self, num_blocks: int) -> list[nn.Parameter]:
        """The parameters that `forward_prefix` uses."""
        suffix = {id(p) for p in self.trunk.blocks[num_blocks:].parameters()}
        suffix |= {id(p) for p in self.trunk.norm.parameters()}
        return [p for p in self.trunk.parameters() if id(p) not in suffix]


def _create(config: ImageTowerConfig) -> VisionTransformer:
    try:
        trunk = timm.create_model(
            config.arch,
            pretrained=False,
            num_classes=0,
            img_size=config.image_size,
            **config.options,
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as err:
        raise ConfigError(
            f"timm cannot build the image tower {config.arch!r} with image_size "
            f"{config.image_size} and options {config.options} ({err}); see timm.list_models('vit_*')"
        ) from err
    if not isinstance(trunk, VisionTransformer) or not trunk.has_class_token:
        raise ConfigError(
            f"{config.arch!r} is no vision transformer with a class token, which is COTS's image "
            "feature; choose one such as 'vit_base_patch16_384'"
        )
    return trunk
