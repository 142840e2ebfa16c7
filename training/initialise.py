"""First weights for the towers, from where people have them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertForMaskedLM
from transformers.utils import logging as transformers_log

from cots_model.errors import InputError
from cots_model.image_tower import ImageTower
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from cots_model.text_tower import TextTower
from training.config import InitConfig
from training.heads import LanguageTokenHead
from training.image_weights import first_line, published_weights, weights_from_file

log = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint:"


def initialise(model: CotsModel, init: InitConfig) -> None:
    """Load first weights into both towers; a side whose source is `random` stays as it is.

    Raises:
        InputError: if a source is missing or does not fit the tower.
    """
    if init.image.startswith(_CHECKPOINT):
        if init.beside:
            raise InputError(
                f"init.image {init.image!r} brings every network of the image tower; "
                "drop init.beside (init.beside=[])"
            )
        _initialise_side(model, "image", init.image)
    elif init.image != "random" or init.beside:
        _initialise_image(model.image, init)
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
        raise InputError(
            "init.text is 'random', which has no tokenizer; name a text model that has one, such "
            "as init.text=sentence-transformers/all-MiniLM-L6-v2 or a folder"
        )
    if init.text.startswith(_CHECKPOINT):
        return Preprocess.from_pretrained(init.text.removeprefix(_CHECKPOINT)).tokenizer
    try:
        return AutoTokenizer.from_pretrained(_folder_or_id(init.text)).backend_tokenizer
    except (OSError, ValueError) as err:
        raise InputError(f"init.text {init.text!r} has no tokenizer ({first_line(err)})") from err


def initialise_language_head(head: LanguageTokenHead, source: str) -> bool:
    """Load BERT's masked language model head, if the text tower's first weights come with one.

    What maps the image feature stays random: BERT has no such part.

    Args:
        head: as wide as the source.
        source: as `init.text`.

    Returns:
        Whether there was such a head; a head with another activation than gelu is none.

    Raises:
        InputError: if the source cannot be read or its head does not fit.
    """
    if source == "random" or source.startswith(_CHECKPOINT):
        return False
    pretrained = _masked_language_model(source)
    if pretrained is None:
        return False
    predictions = pretrained.cls.predictions
    parts = {
        "dense": predictions.transform.dense,
        "norm": predictions.transform.LayerNorm,
        "fuse": head.fuse,
    }
    weights = {f"{n}.{k}": v for n, part in parts.items() for k, v in part.state_dict().items()}
    _load(head, weights | {"bias": predictions.bias}, source)
    return True


def _masked_language_model(source: str) -> BertForMaskedLM | None:
    folder_or_id = _folder_or_id(source)
    try:
        settings = AutoConfig.from_pretrained(folder_or_id)
        if settings.model_type != "bert" or settings.hidden_act != "gelu":
            return None
        with _quiet():  # a tower without a head is nothing to report
            model, report = cast(Any, BertForMaskedLM).from_pretrained(
                folder_or_id, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as err:
        raise InputError(f"init.text {source!r} cannot be loaded ({first_line(err)})") from err
    headless = any(key.startswith("cls.predictions") for key in report["missing_keys"])
    return None if headless else cast(BertForMaskedLM, model)


@contextmanager
def _quiet() -> Iterator[None]:
    before = transformers_log.get_verbosity()
    transformers_log.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_log.set_verbosity(before)


def _initialise_side(model: CotsModel, side: str, source: str) -> None:
    """Take one tower and its projection from a COTS checkpoint."""
    pretrained = CotsModel.from_pretrained(source.removeprefix(_CHECKPOINT))
    try:
        for part in (side, f"{side}_projection"):
            _load(model.get_submodule(part), pretrained.get_submodule(part).state_dict(), source)
    except InputError as err:
        raise InputError(
            f"init.{side} {source!r} holds another {side} tower than the model of this run "
            f"({_differences(side, pretrained, model)}); set `model` to what it was trained as, or "
            "take other first weights"
        ) from err


def _differences(side: str, theirs: CotsModel, ours: CotsModel) -> str:
    before, now = (
        getattr(model.config, side).model_dump() | {"embed_dim": model.config.embed_dim}
        for model in (theirs, ours)
    )
    changed = [key for key in now if before[key] != now[key]]
    return ", ".join(f"{key} {before[key]!r} -> {now[key]!r}" for key in changed)[:200]


def _initialise_image(tower: ImageTower, init: InitConfig) -> None:
    sources = [init.image, *init.beside]
    if len(sources) != len(tower.networks):
        raise InputError(
            f"init.beside names {len(init.beside)} sources; the image tower has "
            f"{len(tower.beside)} networks beside {tower.config.arch!r}: name one for each"
        )
    for source, (config, network) in zip(sources, tower.networks, strict=True):
        if source == "timm":
            _load(network, published_weights(config, tower.config.image_size), source)
        elif source != "random":
            path = Path(_folder_or_id(source))
            _load(network, weights_from_file(path, network, source), source)


def _initialise_text(tower: TextTower, source: str) -> None:
    try:
        pretrained = AutoModel.from_pretrained(_folder_or_id(source))
    except (OSError, ValueError) as err:
        raise InputError(f"init.text {source!r} cannot be loaded ({first_line(err)})") from err
    weights = {k: v for k, v in pretrained.state_dict().items() if not k.startswith("pooler.")}
    _load(tower.trunk, weights, source)


def _load(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as err:
        faults = "; ".join(line.strip()[:200] for line in str(err).splitlines()[1:4])
        raise InputError(
            f"the weights of {source!r} do not fit the tower: {faults}; choose the source made for "
            "this network and its options"
        ) from err
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
