"""The image tower: a timm vision transformer, whose feature is the CLS token.

Shape letters: B batch, P tokens (class token and patches), D width, C channels, H and W pixels or
cells.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import timm
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.efficientnet import EfficientNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cots_model.config import ImageTowerConfig, StemConfig
from cots_model.errors import ConfigError

_NOT_FROM_A_FILE = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}


class ImageTower(nn.Module):
    """Any timm vision transformer with a class token, hybrids included, without its head.

    The paper's is `vit_base_patch16_384`: `[B,3,384,384]` → `[B,577,768]`, 86,090,496 parameters.
    With a stem, the cells of the stem's feature map take the place of the patches.
    """

    def __init__(self, config: ImageTowerConfig) -> None:
        """Build the network with random weights.

        Raises:
            ConfigError: for a name timm does not know, options it does not take, or a network that
                is no vision transformer with a class token.
        """
        super().__init__()
        self.config = config
        self.trunk = _create(config)
        self.width = self.trunk.embed_dim

    def forward(self, img_BCHW: Tensor) -> Tensor:
        """All token outputs after the final norm, `[B,P,D]`; the class token comes first."""
        return self.trunk.forward_features(img_BCHW)

    def feature(self, img_BCHW: Tensor) -> Tensor:
        """The image feature before projection: CLS after the final norm, `[B,D]`."""
        return cast(Tensor, self(img_BCHW))[:, 0]

    @property
    def stem(self) -> Stem | None:
        """The convolutional stem, if there is one."""
        backbone = getattr(self.trunk.patch_embed, "backbone", None)
        return backbone if isinstance(backbone, Stem) else None

    def feature_from_stem(self, map_BCHW: Tensor) -> Tensor:
        """The image feature `[B,D]` from what `stem.body` gave: a frozen body can be cached."""
        trunk, embed = self.trunk, self.trunk.patch_embed
        assert self.stem is not None
        patch_BPD = embed.proj(self.stem.head(map_BCHW)).flatten(2).transpose(1, 2)
        tok_BPD = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(patch_BPD)))
        return cast(Tensor, trunk.norm(trunk.blocks(tok_BPD)))[:, 0]


class Stem(nn.Module):
    """An EfficientNet up to its last convolution: `[B,3,H,W]` → `[B,C,H/32,W/32]`.

    Its batch norms always use their stored statistics: fine-tuning on small sets would spoil them.
    """

    def __init__(self, config: StemConfig) -> None:
        """Build the network with random weights.

        Raises:
            ConfigError: for a name timm does not know, or of another family.
        """
        super().__init__()
        _check_builds_offline(config.arch, config.options)
        try:
            net = timm.create_model(config.arch, pretrained=False, num_classes=0, **config.options)
        except (RuntimeError, TypeError) as err:
            raise ConfigError(
                f"timm cannot build the stem {config.arch!r} with options {config.options} ({err})"
            ) from err
        if not isinstance(net, EfficientNet):
            raise ConfigError(
                f"stem {config.arch!r} is no EfficientNet; choose one of "
                "timm.list_models('efficientnet_*')"
            )
        self.net: EfficientNet = net
        self.drop = nn.Dropout2d(config.drop_rate)
        self.train()

    def train(self, mode: bool = True) -> Stem:
        """Only the dropout leaves evaluation mode."""
        super().train(False)
        self.drop.train(mode)
        return self

    def body(self, img_BCHW: Tensor) -> Tensor:
        """All stages but the last 1x1 convolution: the part worth freezing and caching."""
        return cast(Tensor, self.net.blocks(self.net.bn1(self.net.conv_stem(img_BCHW))))

    def head(self, map_BCHW: Tensor) -> Tensor:
        """The last 1x1 convolution with its norm and activation, and the dropout of channels."""
        return cast(Tensor, self.drop(self.net.bn2(self.net.conv_head(map_BCHW))))

    def forward(self, img_BCHW: Tensor) -> Tensor:
        """The feature map whose cells become patches."""
        return self.head(self.body(img_BCHW))


def _create(config: ImageTowerConfig) -> VisionTransformer:
    _check_builds_offline(config.arch, config.options)
    options: dict[str, Any] = dict(config.options)
    if config.stem is not None:
        options["embed_layer"] = partial(HybridEmbed, backbone=Stem(config.stem))
        options["patch_size"] = 1  # every cell of the map is a patch
    try:
        trunk = timm.create_model(
            config.arch,
            pretrained=False,
            num_classes=0,
            img_size=config.image_size,
            **options,
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as err:
        raise ConfigError(
            f"timm cannot build the image tower {config.arch!r} with image_size "
            f"{config.image_size} and options {config.options} ({err}); "
            "see timm.list_models('vit_*')"
        ) from err
    if not isinstance(trunk, VisionTransformer) or not trunk.has_class_token:
        raise ConfigError(
            f"{config.arch!r} is no vision transformer with a class token, which is COTS's image "
            "feature; choose one such as 'vit_base_patch16_384'"
        )
    return trunk


def _check_builds_offline(arch: str, options: dict[str, Any]) -> None:
    """A foreign checkpoint's configuration must not make timm fetch or unpickle anything."""
    forbidden = sorted(_NOT_FROM_A_FILE & options.keys())
    if ":" in arch or forbidden:
        raise ConfigError(
            f"timm network {arch!r} with options {forbidden}: a configuration describes a network, "
            "it does not load one; use a name of timm.list_models() and drop these options"
        )
