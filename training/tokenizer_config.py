"""One training of an image tokenizer as a YAML file.

config = load_tokenizer_config(Path("training/configs/tokenizer_mini.yaml"), ["epochs=3"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cots_model.config import Frozen
from training.config import OptimiserConfig
from training.config_file import read_config
from training.dvae import DvaeConfig
from training.formats.source import Sources


class TokenizerDataConfig(Frozen):
    """Pictures; captions that come with them are not used.

    Attributes:
        train: sources, as pretraining reads them; see `training.formats.source.SourceConfig`.
        evaluate: pictures that are only reconstructed; none for no such figure.
        num_workers: processes that decode; the batches do not depend on it.
        max_broken_share: of pictures that may be missing or damaged before a run stops.
    """

    train: Annotated[Sources, Field(min_length=1)]
    evaluate: Sources = []
    num_workers: int = Field(default=0, ge=0)
    max_broken_share: float = Field(default=0.05, ge=0, lt=1)


class PictureConfig(Frozen):
    """How a picture becomes the encoder's input; the first two should be those of the model.

    Attributes:
        image_size: side of the model's square input, in pixels; the encoder sees it shrunk.
        resize: `squash` scales both sides, `crop` cuts out the centre.
        min_area: smallest part of the picture's area that a random crop keeps.
        flip: mirror at random.
    """

    image_size: int = Field(default=224, gt=0)
    resize: Literal["squash", "crop"] = "squash"
    min_area: float = Field(default=0.5, gt=0, le=1)
    flip: bool = True


class RelaxationConfig(Frozen):
    """How codes are sampled, and what is added to the mean squared error; all of it is chosen.

    Attributes:
        temperature_start: of the Gumbel-softmax at the first step.
        temperature_end: after `anneal_epochs` (DALL-E: 1/16).
        anneal_epochs: of a half cosine from the one to the other.
        kl_weight: of KL(codes || uniform), mean over the tokens, at the first step.
        kl_weight_end: after `anneal_epochs`, on the same half cosine.
        balance_weight: of KL(mean of the batch's codes || uniform): each token may be certain of
            its code as long as different tokens have different ones.
    """

    temperature_start: float = Field(default=1.0, gt=0)
    temperature_end: float = Field(default=0.0625, gt=0)
    anneal_epochs: float = Field(default=4.0, gt=0)
    kl_weight: float = Field(default=0.0, ge=0)
    kl_weight_end: float = Field(default=0.0, ge=0)
    balance_weight: float = Field(default=0.0, ge=0)


class CollapseConfig(Frozen):
    """When a codebook counts as collapsed.

    Attributes:
        warmup_epochs: epochs that may end below the floors.
        min_perplexity: floor of the perplexity of the codes' frequencies.
        min_usage: floor of the share of codes that occur in an epoch.
        min_kl: floor of KL(codes || uniform) in nats per token; near 0 the most likely code is
            hardly likelier than any other, however many occur.
    """

    warmup_epochs: int = Field(default=1, ge=0)
    min_perplexity: float = Field(default=16.0, ge=1)
    min_usage: float = Field(default=0.05, ge=0, le=1)
    min_kl: float = Field(default=0.1, ge=0)


class TokenizerTrainConfig(Frozen):
    """A whole run.

    Attributes:
        epochs: passes over the pictures.
        batch_size: pictures per step.
        num_shown: pictures in `reconstructions.png`.
        save_every: steps between two saved states; one more is saved after every epoch.
        keep_states: how many of them stay.
        output: folder for the tokenizer, the log and the picture.
    """

    model: DvaeConfig
    data: TokenizerDataConfig
    picture: PictureConfig = PictureConfig()
    relaxation: RelaxationConfig = RelaxationConfig()
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-3)
    collapse: CollapseConfig = CollapseConfig()
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    num_shown: int = Field(default=8, ge=1)
    save_every: int = Field(default=500, ge=1)
    keep_states: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    output: Path

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.picture.image_size < self.model.input_side:
            raise ValueError(
                f"picture.image_size {self.picture.image_size} is less than the encoder's input of "
                f"{self.model.input_side} (model.grid times two per entry of model.widths)"
            )
        if self.collapse.min_perplexity >= self.model.vocab_size:
            raise ValueError("collapse.min_perplexity must be less than model.vocab_size")
        return self


def load_tokenizer_config(path: Path, overrides: Sequence[str] = ()) -> TokenizerTrainConfig:
    """Read a YAML file and change single keys by `key=value`, dots for nesting.

    Raises:
        ConfigError: for a missing file, bad YAML, an unknown key or a value that is not accepted.
    """
    return read_config(TokenizerTrainConfig, path, overrides, other=_command)


def _command(values: dict[str, Any]) -> str | None:
    trains_pairs = isinstance(values.get("model"), str) or "objective" in values
    return "cots train pretrain" if trains_pairs else None
