"""One training run as a YAML file: every choice the paper leaves open is a key here.

config = load_train_config(Path("training/configs/cots-mini.yaml"), ["optimiser.lr=1e-4"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from cots_model.config import Frozen, parse
from cots_model.errors import ConfigError


class InitConfig(Frozen):
    """Where the towers' first weights come from.

    A source is `random`, `timm` (image; weights by timm's name for the architecture), a file or
    folder (image; see `training.image_weights`), a hub id or a folder (text),
    `package:NAME/SUBFOLDER` for weights that an installed package carries, or `checkpoint:SOURCE`
    for a COTS checkpoint, whose whole image or text side is taken.

    Attributes:
        image: the image tower's first network.
        beside: the networks beside it, in their order.
        text: the text tower.
    """

    image: str = "random"
    beside: list[str] = []
    text: str = "random"


class DataConfig(Frozen):
    """Pictures with captions.

    Attributes:
        train: sources, each as `cots index build` reads them; relative to the working directory.
        evaluate: sources scored while training; none for no scoring.
        cache_dir: where features of a frozen image tower are kept between runs.
    """

    train: list[str] = Field(min_length=1)
    evaluate: list[str] = []
    cache_dir: Path = Path("cache")


class AugmentConfig(Frozen):
    """How a training picture varies.

    Attributes:
        num_views: where the image tower is frozen, views of each picture that are embedded once;
            the first is the whole picture, the others are random. Otherwise each view is new.
        min_area: smallest part of the picture's area that a crop keeps.
        flip: mirror random views at random.
    """

    num_views: int = Field(default=1, ge=1)
    min_area: float = Field(default=0.5, gt=0, le=1)
    flip: bool = True


class InstanceConfig(Frozen):
    """The instance-level objective (eq. 4-10).

    Attributes:
        momentum: m (paper: 0.99).
        temperature: τ (paper: 0.05).
        queue_length: N (paper: 12,800 for pre-training, less for small sets).
        mask_same_image: other captions of a picture are no negatives for it (chosen).
    """

    momentum: float = Field(default=0.99, ge=0, le=1)
    temperature: float = Field(default=0.05, gt=0)
    queue_length: int = Field(default=12_800, ge=1)
    mask_same_image: bool = True


class OptimiserConfig(Frozen):
    """AdamW and its schedule.

    Attributes:
        lr: base rate (paper: 5e-5).
        lr_scale: factor by parameter name prefix; the longest matching prefix counts (chosen: parts
            that start from random weights need more).
        weight_decay: paper: 0.02; never on biases, norms, position and class tokens.
        warmup_steps: linear from 0 (chosen; 0 in the paper).
        constant_epochs: epochs at full rate; then linear to 0 (paper: 5).
        clip_norm: largest gradient norm.
    """

    lr: float = Field(default=5e-5, gt=0)
    lr_scale: dict[str, Annotated[float, Field(ge=0)]] = {}
    weight_decay: float = Field(default=0.02, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    constant_epochs: int = Field(default=5, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)


class TrainConfig(Frozen):
    """A whole run.

    Attributes:
        name: of the checkpoint.
        model: a shipped model configuration, or the path of a YAML file of the same form.
        freeze_image: keep the image tower as it is, and cache its features of every view; only
            its projection is trained.
        epochs: passes over the pictures, one random caption each time.
        batch_size: pairs per step.
        precision: `bf16` runs the towers in autocast; losses, queues and averages stay float32.
        evaluate_every: epochs between scorings; the last epoch is always scored.
        storage: number format of the written weights.
        notes: Markdown for the model card: what the data are, licences, limits.
        output: folder for the checkpoint and the log.
    """

    name: str
    model: str
    init: InitConfig = InitConfig()
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    instance: InstanceConfig = InstanceConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    freeze_image: bool = False
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_every: int = Field(default=1, ge=1)
    storage: Literal["float32", "float16", "int8"] = "float32"
    notes: str = ""
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    output: Path


def load_train_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and change single keys by `key=value`, dots for nesting.

    Raises:
        ConfigError: for a missing file, bad YAML, an unknown key or a value that is not accepted.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ConfigError(f"{path} cannot be read as YAML ({err}); see training/configs") from err
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no keys; see training/configs for examples")
    for override in overrides:
        _override(values, override)
    return parse(TrainConfig, values, origin=str(path))


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no override; write key=value, such as epochs=3")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {parent} has no keys below it")
    try:
        values[last] = _number_or_value(yaml.safe_load(text))
    except yaml.YAMLError as err:
        raise ConfigError(f"{override!r}: the value is no YAML ({err})") from err


def _number_or_value(value: object) -> object:
    """YAML 1.1 reads 1e-4 as a string; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
