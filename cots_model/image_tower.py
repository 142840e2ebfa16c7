"""The image tower: a timm network, whose feature is the CLS token where it has one.

Shape letters: B batch, D width, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import Any, cast

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cots_model.config import ImageTowerConfig
from cots_model.errors import ConfigError

_NOT_FROM_A_FILE = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}


class ImageTower(nn.Module):
    """Any timm network without its classifier.

    The paper's is `vit_base_patch16_384`: `[B,3,384,384]` → `[B,577,768]`, 86,090,496 parameters.
    Batch norms always use their stored statistics: fine-tuning on small sets would spoil them.
    """

    def __init__(self, config: ImageTowerConfig) -> None:
        """Build the network with random weights.

        Raises:
            ConfigError: for a name timm does not know, options it does not take, or a network
                without a feature of one vector per picture.
        """
        super().__init__()
        self.config = config
        self.trunk = _create(config)
        self.width = cast(int, getattr(self.trunk, "head_hidden_size", None) or 0)
        if not self.width:
            raise ConfigError(
                f"{config.arch!r} gives no single vector per picture; choose one such as "
                "'vit_base_patch16_384' or 'efficientnet_lite2'"
            )
        self.train()

    def train(self, mode: bool = True) -> ImageTower:
        """Everything but the batch norms follows `mode`."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, img_BCHW: Tensor) -> Tensor:
        """What the network computes before pooling, after the final norm.

        Vision transformers: tokens `[B,P,D]`, the class token first; others: a map `[B,D,h,w]`.
        """
        return cast(Tensor, cast(Any, self.trunk).forward_features(img_BCHW))

    def feature(self, img_BCHW: Tensor) -> Tensor:
        """The image feature before projection, `[B,D]`.

        CLS after the final norm (the paper); of networks without a class token, what they pool for
        their classifier (chosen).
        """
        out = self(img_BCHW)
        if isinstance(self.trunk, VisionTransformer) and self.trunk.has_class_token:
            return cast(Tensor, out)[:, 0]
        return cast(Tensor, cast(Any, self.trunk).forward_head(out, pre_logits=True))


def _create(config: ImageTowerConfig) -> nn.Module:
    _check_builds_offline(config.arch, config.options)
    options: dict[str, Any] = dict(config.options)
    pretrained_cfg = timm.get_pretrained_cfg(config.arch)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        options["img_size"] = config.image_size
    try:
        trunk = timm.create_model(config.arch, pretrained=False, num_classes=0, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as err:
        raise ConfigError(
            f"timm cannot build the image tower {config.arch!r} with image_size "
            f"{config.image_size} and options {config.options} ({err}); see timm.list_models()"
        ) from err
    return trunk


def _check_builds_offline(arch: str, options: dict[str, Any]) -> None:
    """A foreign checkpoint's configuration must not make timm fetch or unpickle anything."""
    forbidden = sorted(_NOT_FROM_A_FILE & options.keys())
    if ":" in arch or forbidden:
        raise ConfigError(
            f"timm network {arch!r} with options {forbidden}: a configuration describes a network, "
            "it does not load one; use a name of timm.list_models() and drop these options"
        )
