"""What a COTS model is made of: one frozen, checked configuration.

The YAML files beside this module (`configs/`) are the models we ship; each is loaded by a test.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cots_model.errors import ConfigError
from cots_model.faults import describe_faults

T = TypeVar("T", bound=BaseModel)

Side = Annotated[int, Field(gt=0, le=2048)]
"""Side of a square input in pixels; a foreign checkpoint must not ask for terabytes."""

Precision = Literal["float32", "bfloat16", "int8"]
"""How an encoder computes. `bfloat16`: matrix products and convolutions in bfloat16, sums in
float32. `int8`: matrix products of both towers in 8-bit integers, on a CPU. Projections and unit
vectors are float32 in all of them."""


class Frozen(BaseModel):
    """Base of our configurations: immutable, and unknown keys are refused.

    A checkpoint's fingerprint leaves out values that are defaults: a new key with a default changes
    no fingerprint, and the default of an old key must never change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkConfig(Frozen):
    """One timm network of the image tower.

    Attributes:
        arch: timm name, such as `vit_base_patch16_384`.
        options: further arguments of the timm constructor (`depth`, `embed_dim`, ...).
        pool: `cls` takes the class token of timm's VisionTransformer classes (the paper), and of
            all other networks what they pool for their classifier; `cls_mean` adds the mean of
            the patch tokens, twice as wide (chosen: better features from a frozen network).
        side: the pixels are scaled to this side for the network; by default it takes them as they
            come. For a network trained on another size than the one beside it.
    """

    arch: str
    options: dict[str, Any] = {}
    pool: Literal["cls", "cls_mean"] = "cls"
    side: Side | None = None


class ImageTowerConfig(NetworkConfig):
    """Any timm network: vision transformers, their hybrids, or a plain convolutional network.

    Attributes:
        image_size: side of the square input, in pixels.
        beside: networks that see the same pixels; their features are appended to the first one's.
        feature_drop_rate: while training, share of the feature's entries set to zero before the
            projection (chosen: small data sets are otherwise learned by heart).
    """

    image_size: Side
    beside: tuple[NetworkConfig, ...] = Field(default=(), max_length=8)
    feature_drop_rate: float = Field(default=0.0, ge=0, lt=1)


class TextTowerConfig(Frozen):
    """Any Hugging Face BERT-style encoder.

    Attributes:
        arch: Hugging Face `model_type`, such as `bert`.
        options: fields of its configuration (`hidden_size`, `num_hidden_layers`, ...).
        feature_drop_rate: while training, share of the feature's entries set to zero before the
            projection (chosen).
    """

    arch: str = "bert"
    options: dict[str, Any] = {}
    feature_drop_rate: float = Field(default=0.0, ge=0, lt=1)


class ModelConfig(Frozen):
    """Both towers and the joint space.

    Attributes:
        name: short name shown to users and stored in galleries.
        image: the image tower.
        text: the text tower.
        embed_dim: width E of the joint space (256 in the paper, supplement section 2).
    """

    name: str
    image: ImageTowerConfig
    text: TextTowerConfig
    embed_dim: int = Field(default=256, gt=0)


class PreprocessConfig(Frozen):
    """How a picture and a text become tensors.

    Attributes:
        image_size: side of the square input, in pixels.
        resize: `squash` scales both sides to `image_size`; `crop` scales the shorter side and
            cuts the centre out.
        mean: per-channel mean, of values in [0, 1].
        std: per-channel standard deviation, of values in [0, 1].
        max_tokens: longer texts are cut, special tokens included.
        pad_token: the tokenizer's padding token.
    """

    image_size: Side
    resize: Literal["squash", "crop"] = "squash"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    max_tokens: int = Field(default=64, gt=2)
    pad_token: str = "[PAD]"


class ShippedConfig(Frozen):
    """A YAML file of `configs/`: a model and the preprocessing that goes with it."""

    model: ModelConfig
    preprocess: PreprocessConfig

    @model_validator(mode="after")
    def _one_image_size(self) -> Self:
        if self.model.image.image_size != self.preprocess.image_size:
            raise ValueError("model.image.image_size and preprocess.image_size must be equal")
        return self


def shipped_config_names() -> list[str]:
    """Names accepted by `load_config`."""
    folder = resources.files("cots_model") / "configs"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_config(name: str) -> ShippedConfig:
    """Read one of the shipped configurations, or a YAML file of the same form.

    Raises:
        ConfigError: for a name that is not shipped, or a file with unknown or bad keys.
    """
    if name.endswith((".yaml", ".yml")):
        return _read_config(Path(name))
    if name not in shipped_config_names():
        known = ", ".join(shipped_config_names())
        raise ConfigError(
            f"unknown model configuration {name!r}; shipped ones: {known}; "
            "or give the path of a .yaml file"
        )
    return _read_config(Path(str(resources.files("cots_model"))) / "configs" / f"{name}.yaml")


def _read_config(path: Path) -> ShippedConfig:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ConfigError(f"{path} cannot be read as YAML ({err})") from err
    return parse(ShippedConfig, values, origin=path.name)


def parse(model: type[T], values: object, *, origin: str) -> T:
    """Check `values` against a configuration class, with a one-line error naming each bad key.

    Raises:
        ConfigError: naming `origin` and every key at fault.
    """
    try:
        return model.model_validate(values)
    except ValidationError as err:
        raise ConfigError(f"{origin}: {describe_faults(err, model)}") from err
