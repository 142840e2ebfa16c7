"""The image tower: timm networks, whose feature is the CLS token where they have one.

Shape letters: B batch, D width, P patches, T tokens (patches and what precedes them), C channels,
H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cots_model.config import ImageTowerConfig, NetworkConfig
from cots_model.errors import ConfigError

_NOT_FROM_A_FILE = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}


class ImageTower(nn.Module):
    """Any timm network without its classifier, and any others beside it.

    The paper's is `vit_base_patch16_384`: `[B,3,384,384]` → `[B,577,768]`, 86,090,496 parameters.
    Batch norms always use their stored statistics: fine-tuning on small sets would spoil them.
    """

    def __init__(self, config: ImageTowerConfig) -> None:
        """Build the networks with random weights.

        Raises:
            ConfigError: for a name timm does not know, options it does not take, or a network
                without a feature of one vector per picture.
        """
        super().__init__()
        self.config = config
        self.trunk = _create(config, config.image_size)
        self.beside = nn.ModuleList(_create(net, config.image_size) for net in config.beside)
        self.width = sum(_width(net, trunk) for net, trunk in self.networks)
        self.train()

    @property
    def networks(self) -> list[tuple[NetworkConfig, nn.Module]]:
        """Every network with its configuration, the first one first."""
        configs = [self.config, *self.config.beside]
        return list(zip(configs, [self.trunk, *self.beside], strict=True))

    def train(self, mode: bool = True) -> ImageTower:
        """Everything but the batch norms follows `mode`."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, img_BCHW: Tensor) -> Tensor:
        """What the first network computes before pooling, after the final norm.

        Vision transformers: tokens `[B,T,D]`, the class token first; of others what timm gives,
        mostly a map `[B,D,h,w]`.
        """
        return _features(self.config, self.trunk, img_BCHW)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Height and width, in patches, of what the first network sees: P = h * w.

        Raises:
            ConfigError: if the first network has no patch tokens.
        """
        return cast(tuple[int, int], tuple(self._patch_trunk().patch_embed.grid_size))

    @property
    def token_width(self) -> int:
        """Width D of the first network's tokens; `width` is that of the whole feature.

        Raises:
            ConfigError: if the first network has no patch tokens.
        """
        return self._patch_trunk().embed_dim

    def masked_patches(self, img_BCHW: Tensor, hidden_BP: Tensor, mask_token_D: Tensor) -> Tensor:
        """Patch tokens `[B,P,D]` of the first network where some patches are hidden (eq. 1).

        The embedding of a hidden patch is replaced before position embeddings are added, so the
        network knows where, not what. With nothing hidden these are `forward`'s patch tokens. In a
        hybrid the convolutions in front of the patches have seen their neighbours (chosen: let it).

        Args:
            img_BCHW: normalised pixels.
            hidden_BP: bool, row by row of `patch_grid`, true where a patch is hidden.
            mask_token_D: what stands in for a hidden patch, `[D]`, with gradient.

        Raises:
            ConfigError: if the first network has no patch tokens, or drops some.
            ValueError: if `hidden_BP` has not one flag per patch.
        """
        trunk = self._patch_trunk()
        with _replaced_patches(trunk, hidden_BP, mask_token_D):
            tokens_BTD = self(img_BCHW)
        return cast(Tensor, tokens_BTD[:, trunk.num_prefix_tokens :])

    def _patch_trunk(self) -> VisionTransformer:
        if not isinstance(self.trunk, VisionTransformer):
            raise ConfigError(
                f"{self.config.arch!r} has no patch tokens to hide; choose a vision transformer "
                "such as 'vit_base_patch16_384' or switch the token-level loss of pictures off"
            )
        if not isinstance(self.trunk.patch_drop, nn.Identity):
            raise ConfigError(
                f"{self.config.arch!r} drops patches at random, so they cannot be told apart; "
                "take patch_drop_rate out of its options"
            )
        return self.trunk

    def feature(self, img_BCHW: Tensor) -> Tensor:
        """The image feature before projection, `[B,D]`: that of every network, side by side."""
        features = [_feature(net, trunk, img_BCHW) for net, trunk in self.networks]
        return torch.cat(features, dim=1)


@contextmanager
def _replaced_patches(
    trunk: VisionTransformer, hidden_BP: Tensor, mask_token_D: Tensor
) -> Iterator[None]:
    """While it lasts, hidden patches leave the patch embedding as the mask token."""

    def replace(_module: nn.Module, _args: object, patch_BPD: Tensor) -> Tensor:
        if hidden_BP.shape != (len(patch_BPD), math.prod(patch_BPD.shape[1:-1])):
            raise ValueError(
                f"flags {list(hidden_BP.shape)} for patches {list(patch_BPD.shape[:-1])}; "
                "give one per picture and patch, see patch_grid"
            )
        hidden_BP1 = hidden_BP.reshape(*patch_BPD.shape[:-1], 1)  # dynamic: a grid
        return torch.where(hidden_BP1, mask_token_D.to(patch_BPD.dtype), patch_BPD)

    handle = trunk.patch_embed.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _features(config: NetworkConfig, trunk: nn.Module, img_BCHW: Tensor) -> Tensor:
    if config.side is not None and img_BCHW.shape[-2:] != (config.side, config.side):
        img_BCHW = F.interpolate(
            img_BCHW, (config.side, config.side), mode="bilinear", antialias=True
        )
    return cast(Tensor, cast(Any, trunk).forward_features(img_BCHW))


def _feature(config: NetworkConfig, trunk: nn.Module, img_BCHW: Tensor) -> Tensor:
    out = _features(config, trunk, img_BCHW)
    if not _has_class_token(trunk):
        return cast(Tensor, cast(Any, trunk).forward_head(out, pre_logits=True))
    cls_BD = out[:, 0]
    if config.pool == "cls":
        return cls_BD
    patches_BPD = out[:, cast(int, trunk.num_prefix_tokens) :]
    return torch.cat([cls_BD, patches_BPD.mean(dim=1)], dim=1)


def _width(config: NetworkConfig, trunk: nn.Module) -> int:
    width = cast(int, getattr(trunk, "head_hidden_size", None) or 0)
    if not width:
        raise ConfigError(
            f"{config.arch!r} gives no single vector per picture; choose one such as "
            "'vit_base_patch16_384' or 'efficientnet_lite2'"
        )
    if config.pool == "cls":
        return width
    if not _has_class_token(trunk):
        raise ConfigError(f"{config.arch!r} has no class token; leave out pool: {config.pool}")
    return 2 * width


def _has_class_token(trunk: nn.Module) -> bool:
    return isinstance(trunk, VisionTransformer) and trunk.has_class_token


def _create(config: NetworkConfig, image_size: int) -> nn.Module:
    _check_builds_offline(config.arch, config.options)
    side = config.side or image_size
    try:
        options = config.options | input_options(config, image_size)
        return timm.create_model(config.arch, pretrained=False, num_classes=0, **options)
    except Exception as err:  # timm raises whatever its layers do
        raise ConfigError(
            f"timm cannot build the network {config.arch!r} for {side} x {side} pixels with "
            f"options {config.options} ({err}); see timm.list_models()"
        ) from err


def input_options(config: NetworkConfig, image_size: int) -> dict[str, Any]:
    """What timm's constructor must be told about the input: its side, if that is fixed."""
    pretrained_cfg = timm.get_pretrained_cfg(config.arch)
    if pretrained_cfg is None or not pretrained_cfg.fixed_input_size:
        return {}
    return {"img_size": config.side or image_size}


def _check_builds_offline(arch: str, options: dict[str, Any]) -> None:
    """A foreign checkpoint's configuration must not make timm fetch or unpickle anything."""
    forbidden = sorted(_NOT_FROM_A_FILE & options.keys())
    if ":" in arch or forbidden:
        raise ConfigError(
            f"timm network {arch!r} with options {forbidden}: a configuration describes a network, "
            "it does not load one; use a name of timm.list_models() and drop these options"
        )
