"""First weights of a timm network, from the files other projects publish them in.

Shape letters: P patches, D width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.efficientnet import EfficientNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cots_model.config import NetworkConfig
from cots_model.errors import InputError
from cots_model.image_tower import input_options

Weights = dict[str, Tensor]


def published_weights(config: NetworkConfig, image_size: int) -> Weights:
    """What timm publishes for a network, position embeddings resized to its patches.

    Raises:
        InputError: if it publishes none, or they cannot be fetched.
    """
    try:
        options = input_options(config, image_size)
        pretrained = timm.create_model(config.arch, pretrained=True, num_classes=0, **options)
    except Exception as err:  # the hub client's errors, timm's and the system's
        raise InputError(
            f"timm gives no weights for {config.arch!r} ({first_line(err)}); check the "
            "connection, or give a file"
        ) from err
    return dict(pretrained.state_dict())


def weights_from_file(path: Path, network: nn.Module, source: str) -> Weights:
    """Read the one weights file at `path`, or in that folder, under timm's names.

    Taken are original EfficientNet-lite files (`.pth`), and models with a module `backbone` that is
    transformers' DINOv2, as torch's TorchScript exporter writes them (`.onnx`).

    Raises:
        InputError: if there is no such file, it is damaged, or it is for another kind of network.
    """
    kinds = {EfficientNet: ".pth", VisionTransformer: ".onnx"}
    suffix = next((end for kind, end in kinds.items() if isinstance(network, kind)), None)
    if suffix is None:
        raise InputError(
            f"init source {source!r} is for an EfficientNet or a vision transformer; this network "
            f"is {type(network).__name__}: use timm, checkpoint:SOURCE or random"
        )
    files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
    if not path.exists() or (files[:1] == [path] and path.suffix != suffix):
        raise InputError(
            f"init source {source!r} is no {suffix} file and no folder with one; images take "
            "random, timm, package:NAME/SUBFOLDER or such a file or folder"
        )
    if len(files) != 1:
        raise InputError(f"init source {source!r} holds {len(files)} {suffix} files; one is needed")
    if isinstance(network, EfficientNet):
        return rename_efficientnet_lite(_read_pth(files[0]), network)
    return rename_dinov2(read_onnx(files[0]), cast(VisionTransformer, network))


def _read_pth(path: Path) -> Weights:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # the unpickler raises whatever damaged bytes lead to
        raise InputError(f"{path} cannot be loaded ({first_line(err)}); copy it again") from err
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(w, Tensor) for name, w in weights.items()
    ):
        raise InputError(
            f"{path} holds {type(weights).__name__}, not tensors by name; save its state_dict"
        )
    return weights


def read_onnx(path: Path) -> Weights:
    """Weights of an exported network by the names their modules had.

    An export keeps the names of biases and norms, but gives the matrices of linear layers,
    transposed, the name of the node that multiplies by them, and folds constants under new names.

    Raises:
        InputError: if the file is not ONNX.
    """
    try:
        import onnx
    except ImportError as err:
        raise InputError(f"{path} needs onnx; pip install 'cots-retrieval[train]'") from err
    try:
        graph = onnx.load_model(path, format="protobuf", load_external_data=False).graph
        if any(i.data_location == onnx.TensorProto.EXTERNAL for i in graph.initializer):
            raise ValueError("it keeps weights in other files; export it as one file")
        stored = {
            i.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(i)))
            for i in graph.initializer
        }
    except Exception as err:  # onnx and protobuf raise their own
        raise InputError(
            f"{path} cannot be read as ONNX ({first_line(err)}); copy or export it again"
        ) from err
    return stored | _linear_weights(graph.node, stored)


def _linear_weights(nodes: Iterable[Any], stored: Weights) -> Weights:
    found = {}
    for node in nodes:
        matrices = [name for name in node.input if name in stored and stored[name].ndim == 2]
        if node.op_type == "MatMul" and matrices and node.name.endswith("/MatMul"):
            module = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            found[f"{module}.weight"] = stored[matrices[0]].T.contiguous()
    return found


_DINOV2 = {
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layer_scale2.lambda1": "ls2.gamma",
}


def rename_dinov2(weights: Mapping[str, Tensor], net: VisionTransformer) -> Weights:
    """From a DINOv2 backbone of Hugging Face transformers to timm's names.

    Only the first blocks are taken if `net` is shallower; its final norm then starts as a plain
    layer norm, for the original belongs to the last block. Position embeddings are resized to the
    network's patches.

    Raises:
        InputError: naming the first weight that is not there.
    """
    at = _Prefixed(weights, "backbone.")
    if "backbone.embeddings.register_tokens" in weights:
        raise InputError("the export has register tokens, which are not read; take one without")
    renamed = {"cls_token": at["embeddings.cls_token"], "pos_embed": _positions(weights, net)}
    for leaf in ("weight", "bias"):
        renamed[f"patch_embed.proj.{leaf}"] = at[f"embeddings.patch_embeddings.projection.{leaf}"]
    for block in range(len(net.blocks)):
        layer = _Prefixed(weights, f"backbone.encoder.layer.{block}.")
        renamed |= {f"blocks.{block}.{name}": w for name, w in _dinov2_block(layer).items()}
    whole = f"backbone.encoder.layer.{len(net.blocks)}.norm1.weight" not in weights
    width = net.embed_dim
    renamed["norm.weight"] = at["layernorm.weight"] if whole else torch.ones(width)
    renamed["norm.bias"] = at["layernorm.bias"] if whole else torch.zeros(width)
    return renamed


def _dinov2_block(layer: _Prefixed) -> Weights:
    block = {}
    for leaf in ("weight", "bias"):
        parts = [layer[f"attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")]
        block[f"attn.qkv.{leaf}"] = torch.cat(parts)
    for theirs, ours in _DINOV2.items():
        if "lambda" in theirs:
            block[ours] = layer[theirs]
        else:
            block |= {f"{ours}.{leaf}": layer[f"{theirs}.{leaf}"] for leaf in ("weight", "bias")}
    return block


def _positions(weights: Mapping[str, Tensor], net: VisionTransformer) -> Tensor:
    """The export stores the class token's and the patches' position embeddings, without names.

    They are resized as DINOv2 does it; timm's own default smooths them.
    """
    width = net.embed_dim
    nameless = [w for name, w in weights.items() if name.startswith("onnx::")]
    cls = [w for w in nameless if w.shape == (1, 1, width)]
    grid = [w for w in nameless if w.ndim == 3 and w.shape[1] > 1 and w.shape[2] == width]
    if len(cls) != 1 or len(grid) != 1:
        raise InputError(
            f"{len(cls)} and {len(grid)} candidates for position embeddings of width {width} among "
            "the weights, one of each is needed; is it a DINOv2 export?"
        )
    size = cast(tuple[int, int], net.patch_embed.grid_size)
    positions = torch.cat([cls[0], grid[0]], dim=1)
    return cast(Tensor, resample_abs_pos_embed(positions, list(size), antialias=False))


class _Prefixed:
    """Lookup by the rest of a name, with an error that says what is missing."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str) -> None:
        self.weights = weights
        self.prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.weights[self.prefix + name]
        except KeyError:
            raise InputError(
                f"there is no weight {self.prefix + name!r}; is it a DINOv2 export of this depth?"
            ) from None


_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def rename_efficientnet_lite(weights: dict[str, Tensor], net: EfficientNet) -> dict[str, Tensor]:
    """From the names of the original EfficientNet-lite files to timm's; the classifier is left out.

    The original numbers its blocks through; timm numbers them within seven stages. Foreign names
    stay as they are, so that loading reports them.
    """
    stages = enumerate(net.blocks)
    place = [f"blocks.{s}.{b}" for s, stage in stages for b in range(len(list(stage.children())))]
    renamed = {}
    for name, weight in weights.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block and int(block[1]) < len(place):
            number = int(block[1])
            names = _LATER if f"_blocks.{number}._expand_conv.weight" in weights else _FIRST
            renamed[f"{place[number]}.{names.get(block[2], block[2])}.{block[3]}"] = weight
        elif not name.startswith("_fc."):
            part, _, leaf = name.partition(".")
            renamed[f"{_TOP.get(part, part)}.{leaf}"] = weight
    return renamed


def first_line(err: Exception) -> str:
    """What an error of another library says, without its details."""
    return str(err).strip().split("\n", 1)[0]
