"""One training run as a YAML file: every choice the paper leaves open is a key here.

config = load_train_config(Path("training/configs/cots_mini/pretrain.yaml"), ["optimiser.lr=1e-4"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cots_model.config import Frozen
from training.config_file import read_config
from training.formats.source import Sources


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
    """Pictures and videos with captions.

    Attributes:
        train: sources, each a path or a mapping; see `training.formats.source.SourceConfig`.
        evaluate: sources scored while training; none for no scoring.
        cache_dir: where features of a frozen image tower, or decoded pictures, are kept between
            runs.
        stream: read tar shards anew every epoch instead of listing all their pictures first (for
            millions of pairs); the order is then shuffled by shards and blocks.
        block_size: of a stream, pictures that are held in memory and shuffled at a time.
        num_workers: processes that decode; the batches do not depend on it.
        resident_side: keep all pictures on the device, stretched to squares of this side, and crop
            there; for sets that fit its memory. `None` decodes each at every visit.
        num_frames: of a video (paper: 16).
        max_broken_share: of pictures that may be missing or damaged before a run stops.
    """

    train: Annotated[Sources, Field(min_length=1)]
    evaluate: Sources = []
    cache_dir: Path = Path("cache")
    stream: bool = False
    block_size: int = Field(default=10_000, ge=1)
    num_workers: int = Field(default=0, ge=0)
    resident_side: int | None = Field(default=None, ge=1)
    num_frames: int = Field(default=16, ge=1)
    max_broken_share: float = Field(default=0.05, ge=0, le=1)


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
        weight: of both directions in the sum.
        momentum: m (paper: 0.99).
        temperature: τ (paper: 0.05).
        queue_length: N (paper: 12,800 for pre-training, less for small sets).
        mask_same_image: other captions of a picture are no negatives for it (chosen).
    """

    weight: float = Field(default=1.0, ge=0)
    momentum: float = Field(default=0.99, ge=0, le=1)
    temperature: float = Field(default=0.05, gt=0)
    queue_length: int = Field(default=12_800, ge=1)
    mask_same_image: bool = True


class TaskConfig(Frozen):
    """The task-level objective (eq. 11-14).

    Attributes:
        weight: of L_task in the sum; 0 switches it off.
    """

    weight: float = Field(default=0.0, ge=0)


class VisionTokenConfig(Frozen):
    """Hidden patches (CMVM, eq. 1).

    Attributes:
        weight: of the loss in the sum; 0 switches it off.
        tokenizer: image tokenizer: a folder that `cots train tokenizer` made, DALL-E's or FLAVA's
            weights, or a hub id.
        mask: `block` as in BEiT, or `random` (the paper is open).
        share: of the patches that are hidden (paper: 0.4).
        min_block: smallest block in patches (BEiT: 16).
    """

    weight: float = Field(default=0.0, ge=0)
    tokenizer: str = ""
    mask: Literal["block", "random"] = "block"
    share: float = Field(default=0.4, gt=0, lt=1)
    min_block: int = Field(default=16, ge=1)


class LanguageTokenConfig(Frozen):
    """Hidden words (CMLM, eq. 2).

    Attributes:
        weight: of the loss in the sum; 0 switches it off.
        share: of the words that are hidden (paper: 0.15).
    """

    weight: float = Field(default=0.0, ge=0)
    share: float = Field(default=0.15, gt=0, le=1)


class FilterConfig(Frozen):
    """The adaptive momentum filter (eq. 15).

    Attributes:
        enabled: drop pairs whose momentum similarity is too low.
        num_sigmas: how many standard deviations below the mean is too low (paper: 2).
    """

    enabled: bool = False
    num_sigmas: float = 2.0


class ObjectiveConfig(Frozen):
    """Which losses are summed; the paper's pre-training has all, each with weight 1 (chosen).

    Attributes:
        instance: the instance level.
        task: the task level.
        vision: hidden patches.
        language: hidden words.
        filter: which pairs count.
    """

    instance: InstanceConfig = InstanceConfig()
    task: TaskConfig = TaskConfig()
    vision: VisionTokenConfig = VisionTokenConfig()
    language: LanguageTokenConfig = LanguageTokenConfig()
    filter: FilterConfig = FilterConfig()

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not any(self.weights().values()):
            raise ValueError("every loss has weight 0; give instance.weight or another a weight")
        return self

    @model_validator(mode="after")
    def _tokenizer_is_named(self) -> Self:
        if self.vision.weight and not self.vision.tokenizer:
            raise ValueError(
                "vision.weight hides patches; name an image tokenizer: vision.tokenizer"
            )
        return self

    def weights(self) -> dict[str, float]:
        """Weight of each loss term, by its name in the log."""
        return {
            "image_to_text": self.instance.weight,
            "text_to_image": self.instance.weight,
            "task": self.task.weight,
            "vision": self.vision.weight,
            "language": self.language.weight,
        }


class EngineConfig(Frozen):
    """How a run is executed, and when it is given up; what is computed stays but for rounding.

    Attributes:
        parallel: of several processes, `ddp` copies the model to each, `fsdp` splits it.
        activation_checkpointing: recompute the towers' blocks in the backward pass.
        compile: compile the towers' blocks.
        channels_last: keep the image tower's convolutions and what they see pixel by pixel; not
            with `fsdp` over several processes.
        save_every: optimiser steps between saved states; one is always saved when a run stops.
        keep_states: how many are kept.
        log_every: optimiser steps between log lines.
        diverges_after: optimiser steps in a row, with full queues, whose loss is too high, or whose
            features are one and the same, before the run stops as it does at a figure that is not
            finite: with the step, its pictures and the saved state. 0 never stops it.
        diverges_factor: too high is above so many times the median of the last `diverges_after`
            good losses; nothing is before there are as many. Steps without a kept pair have no
            loss, and are passed over.
        collapses_below: features are one and the same where 1 - |mean of the rows|, all unit
            vectors, of the image queue or of the text queue is below it; 0 is never, and a queue of
            length 1 does not tell.
    """

    parallel: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    save_every: int = Field(default=500, ge=1)
    keep_states: int = Field(default=2, ge=1)
    log_every: int = Field(default=1, ge=1)
    diverges_after: int = Field(default=200, ge=0)
    diverges_factor: float = Field(default=3.0, gt=1)
    collapses_below: float = Field(default=1e-4, ge=0)


class RegressionConfig(Frozen):
    """Both projections in closed form; see `training.regression`.

    Attributes:
        when: `never`; `first`, instead of random first weights; `last`, after the last epoch
            instead of what the projections learned; or `both`.
        ridge: weight of the L2 penalty on the image projection, per row of the regression.
        share: of the closed form in the last projections; the rest is what they learned from its
            start. Below 1 only with `when: both` and `freeze_text`, or the two would not be of one
            space.
        whitening: 0 keeps the directions of the text feature as strong as they are, 1 makes them
            equally strong; more tells pictures of one kind apart better, less tells kinds apart.
    """

    when: Literal["never", "first", "last", "both"] = "never"
    ridge: float = Field(default=0.25, gt=0)
    share: float = Field(default=1.0, gt=0, le=1)
    whitening: float = Field(default=0.25, ge=0, le=1)

    @property
    def is_first(self) -> bool:
        """Whether the projections start from it."""
        return self.when in ("first", "both")

    @property
    def is_last(self) -> bool:
        """Whether the checkpoint's projections come from it."""
        return self.when in ("last", "both")


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimiserConfig(Frozen):
    """AdamW and its schedule.

    Attributes:
        lr: base rate (paper: 5e-5).
        lr_scale: factor by parameter name prefix; the longest matching prefix counts (chosen: parts
            that start from random weights need more). What has 0 stays as it is, and costs no
            backward pass.
        betas: decay rates of AdamW's averages of the gradient and of its square (open in the
            paper; chosen: Adam's usual ones).
        eps: what AdamW adds to the denominator (open in the paper; chosen: Adam's usual one).
        weight_decay: paper: 0.02; never on biases, norms, position and class tokens, and what timm
            spares in a network.
        warmup_steps: linear from 0 (chosen; 0 in the paper).
        constant_epochs: epochs at full rate; then linear to 0 (paper: 5).
        clip_norm: largest gradient norm.
    """

    lr: float = Field(default=5e-5, gt=0)
    lr_scale: dict[str, Annotated[float, Field(ge=0)]] = {}
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.02, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    constant_epochs: int = Field(default=5, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)


class TrainConfig(Frozen):
    """A whole run.

    Attributes:
        name: of the checkpoint.
        model: a shipped model configuration, or the path of a YAML file of the same form.
        objective: the losses.
        engine: how it is executed.
        regression: closed-form projections, with a frozen image tower only.
        freeze_image: keep the image tower as it is, and cache its features of every view; only
            its projection is trained.
        freeze_text: keep the text tower as it is, and hold the captions' features in memory; only
            its projection is trained.
        epochs: passes over the pictures, one random caption each time; 0 for `regression` alone.
        batch_size: pairs per process that go through the towers at once.
        accumulate: such batches per optimiser step.
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
    objective: ObjectiveConfig = ObjectiveConfig()
    engine: EngineConfig = EngineConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    freeze_image: bool = False
    freeze_text: bool = False
    regression: RegressionConfig = RegressionConfig()
    epochs: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_every: int = Field(default=1, ge=1)
    storage: Literal["float32", "float16", "int8"] = "float32"
    notes: str = ""
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    output: Path

    @model_validator(mode="after")
    def _words_can_be_hidden(self) -> Self:
        if self.freeze_text and self.objective.language.weight:
            raise ValueError(
                "objective.language trains the text tower, and freeze_text keeps it as it is; set "
                "objective.language.weight=0 or freeze_text=false"
            )
        if self.freeze_text and self.data.stream:
            raise ValueError("a stream's captions are not known before; set freeze_text=false")
        return self

    @model_validator(mode="after")
    def _resident_are_visited(self) -> Self:
        if self.data.resident_side and (self.data.stream or self.freeze_image):
            raise ValueError(
                "data.resident_side keeps the pictures of a list for an image tower that is "
                "trained; leave it out, or set data.stream=false and freeze_image=false"
            )
        return self

    @model_validator(mode="after")
    def _regression_has_features(self) -> Self:
        if self.regression.when != "never" and not self.freeze_image:
            raise ValueError(
                "regression needs the features of a frozen image tower; set freeze_image=true or "
                "regression.when=never"
            )
        if self.regression.share < 1 and not (self.regression.when == "both" and self.freeze_text):
            raise ValueError(
                "regression.share mixes what was learned with the closed form it started from; set "
                "regression.when=both and freeze_text=true, or share=1"
            )
        if not self.epochs and not self.regression.is_last:
            raise ValueError("epochs=0 trains nothing; set epochs or regression.when=last")
        return self


def load_train_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a run from a YAML file; see `training.config_file.read_config`.

    Raises:
        ConfigError: for a missing file, bad YAML, an unknown key or a value that is not accepted.
    """
    return read_config(TrainConfig, path, overrides, other=_command)


def _command(values: dict[str, Any]) -> str | None:
    return "cots train tokenizer" if isinstance(values.get("model"), dict) else None
