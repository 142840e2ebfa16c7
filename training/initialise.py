"""First weights for the towers, from where people have them."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.efficientnet import EfficientNet
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from cots_model.errors import InputError
from cots_model.image_tower import ImageTower
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from cots_model.text_tower import TextTower
from training.config import InitConfig

log = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint:"


def initialise(model: CotsModel, init: InitConfig) -> None:
    """Load first weights into both towers; what a source does not have stays random.

    Raises:
        InputError: if a source is missing or does not fit the tower.
    """
    if init.image.startswith(_CHECKPOINT):
        _initialise_side(model, "image", init.image)
    elif init.image != "random":
        _initialise_image(model.image, init.image)
    if init.text.startswith(_CHECKPOINT):
        _initialise_side(model, "text", init.text)
    elif init.text != "random":
        _initialise_text(model.text, init.text)


def load_tokenizer(init: InitConfig) -> Tokenizer:
    """The tokenizer that belongs to the text tower's first weights.

    Raises:
        InputError: if the source has none.
    """
    if init.text == "random":
        raise InputError("init.text is 'random', which has no tokenizer; name a text model")
    if init.text.startswith(_CHECKPOINT):
        return Preprocess.from_pretrained(init.text.removeprefix(_CHECKPOINT)).tokenizer
    try:
        return AutoTokenizer.from_pretrained(_folder_or_id(init.text)).backend_tokenizer
    except (OSError, ValueError) as err:
        raise InputError(f"init.text {init.text!r} has no tokenizer ({_first_line(err)})") from err


def _initialise_side(model: CotsModel, side: str, source: str) -> None:
    """Take one tower and its projection from a COTS checkpoint."""
    pretrained = CotsModel.from_pretrained(source.removeprefix(_CHECKPOINT))
    for part in (side, f"{side}_projection"):
        _load(model.get_submodule(part), pretrained.get_submodule(part).state_dict(), source)


def _initialise_image(tower: ImageTower, source: str) -> None:
    if source == "timm":
        _load(tower.trunk, _timm_weights(tower), source)
        return
    if not isinstance(tower.trunk, EfficientNet):
        raise InputError(
            f"init.image {source!r} is for an EfficientNet; this image tower is "
            f"{tower.config.arch!r}: use timm, checkpoint:SOURCE or random"
        )
    path = _folder_or_id(source)
    files = sorted(Path(path).glob("*.pth")) if Path(path).is_dir() else [Path(path)]
    if len(files) != 1 or not files[0].is_file():
        raise InputError(f"init.image {source!r} holds {len(files)} .pth files; one is needed")
    weights = _read_pth(files[0])
    _load(tower.trunk, rename_efficientnet_lite(weights, tower.trunk), source)


def _timm_weights(tower: ImageTower) -> dict[str, Tensor]:
    """What timm publishes for the tower's network, position embeddings resized to its patches."""
    config = tower.config
    options: dict[str, Any] = {}
    if hasattr(tower.trunk, "pos_embed"):
        options["img_size"] = config.image_size
    pretrained = timm.create_model(config.arch, pretrained=True, num_classes=0, **options)
    return dict(pretrained.state_dict())


def _read_pth(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise InputError(f"{path} cannot be loaded ({_first_line(err)}); copy it again") from err
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise InputError(f"{path} holds {type(weights).__name__}, not tensors by name")
    return weights


def _initialise_text(tower: TextTower, source: str) -> None:
    try:
        pretrained = AutoModel.from_pretrained(_folder_or_id(source))
    except (OSError, ValueError) as err:
        raise InputError(f"init.text {source!r} cannot be loaded ({_first_line(err)})") from err
    weights = {k: v for k, v in pretrained.state_dict().items() if not k.startswith("pooler.")}
    _load(tower.trunk, weights, source)


def _load(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as err:
        raise InputError(f"the weights of {source!r} do not fit the tower: {err}") from err
    log.info("initialised %d tensors from %s", len(weights), source)


def _folder_or_id(source: str) -> str:
    if not source.startswith("package:"):
        return source
    package, _, rest = source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"{source!r}: no package {package!r} is installed; pip install 'cots-retrieval[train]'"
        )
    return str(Path(spec.submodule_search_locations[0], rest))


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


def _first_line(err: Exception) -> str:
    return str(err).strip().split("\n", 1)[0]
