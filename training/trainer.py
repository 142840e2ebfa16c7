"""From a configuration to a trained checkpoint (section 3.2 and 3.3).

result = train(load_train_config(Path("training/configs/cots_mini/pretrain.yaml")))
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from cots_model.config import load_config
from cots_model.encoder import resolve_device
from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from training.batches import PairBatches
from training.caption_features import CaptionFeatures
from training.config import TrainConfig
from training.data import read_examples
from training.engine.dropped import FilterReport
from training.engine.hiding import Hider
from training.engine.run import Run
from training.engine.run_files import FILES, MAY_CHANGE
from training.engine.same_run import check_output
from training.engine.states import STATES, StateFolder
from training.engine.stepper import Stepper
from training.engine.stopping import listen_for_stop
from training.engine.world import World, join_world
from training.example import Example
from training.feature_cache import FeatureCache, cached_features
from training.initialise import initialise, initialise_language_head, load_tokenizer
from training.metrics import RetrievalMetrics
from training.objective import Objective
from training.orders import ShardOrder
from training.regression import fit_projections
from training.resident import ResidentPictures
from training.tokenizer_source import load_tokenizer_model

_LONGER = " and start from it: init.image=checkpoint:{folder} init.text=checkpoint:{folder}"


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        checkpoint: its folder.
        fingerprint: of the checkpoint.
        metrics: on the evaluation data, if there is any.
        wall_s: seconds of training with loading the data, without caching features and scoring.
        is_main: whether this process is the one that prints.
    """

    checkpoint: Path
    fingerprint: str
    metrics: RetrievalMetrics | None
    wall_s: float
    is_main: bool = True


def train(config: TrainConfig, *, report: FilterReport | None = None) -> TrainResult:
    """Run a whole training as configured, or what is left of it, and write the checkpoint.

    Args:
        config: of the run.
        report: a page of the pairs that the filter drops, anew after every epoch.

    Raises:
        ConfigError: if the configuration does not fit the model, or the run in its folder.
        InputError: if data or first weights are missing or broken.
        TrainingError: if a figure stops being finite, the loss diverges or the features collapse,
            with the state saved in the run's folder `failed`, or if all saved states are damaged;
            if the process is asked to end, with the state saved to go on from.
    """
    if report is not None:
        report.check(config)
    with join_world(config.device) as world:
        return _train(config, report, world)


def _train(config: TrainConfig, report: FilterReport | None, world: World) -> TrainResult:
    with world.together():
        check_output(config.output, config, may_change=MAY_CHANGE, files=FILES, longer=_LONGER)
    torch.manual_seed(config.seed)
    model, preprocess = make_model(config)
    stream = config.data.stream
    examples = [] if stream else read_examples(config.data.train, for_training=True)
    cache = _feature_cache(config, model, preprocess, examples)
    captions = _caption_features(config, model, preprocess, examples)
    batches = make_batches(config, examples, cache, captions, preprocess, world)
    evaluated = read_examples(config.data.evaluate) if config.data.evaluate else []
    fit = _projection_fit(config, preprocess, examples, cache, captions)
    states = StateFolder(config.output / STATES, keep=config.engine.keep_states)
    if config.regression.is_first and not states.steps():
        fit(model.to(world.device), share=1.0)
    world.barrier()  # one may have read the data faster
    frozen = _fingerprint(model.image if config.freeze_image else None)
    frozen += _fingerprint(model.text if config.freeze_text else None)
    stepper = make_stepper(config, model, preprocess, world, len(batches))
    share = config.regression.share
    finish = partial(fit, share=share) if config.regression.is_last else None
    with listen_for_stop() as stop:
        run = Run(
            config,
            stepper,
            batches,
            preprocess,
            evaluated,
            stop,
            frozen=frozen + _fingerprint(stepper.hider.tokenizer),
            report=report,
            finish=finish,
        )
        run.train()
    wall_s = run.progress.wall_s
    return TrainResult(config.output, run.fingerprint, run.metrics, wall_s, world.is_main)


def make_stepper(
    config: TrainConfig,
    model: CotsModel,
    preprocess: Preprocess,
    world: World,
    batches_per_epoch: int,
) -> Stepper:
    """The first step of a run that starts with `model`.

    Raises:
        ConfigError: if an epoch has no whole step, or the parts do not fit together.
    """
    vision = config.objective.vision
    tokenizer = load_tokenizer_model(vision.tokenizer) if vision.weight else None
    if tokenizer is not None:
        tokenizer.to(world.device).eval().requires_grad_(False)
    hider = Hider(config.objective, model, preprocess, tokenizer)
    objective = Objective(
        model,
        config.objective,
        num_codes=tokenizer.vocab_size if tokenizer is not None else 0,
        freeze_image=config.freeze_image,
    )
    if objective.language_head is not None:
        initialise_language_head(objective.language_head, config.init.text)
    if batches_per_epoch < config.accumulate:
        raise ConfigError(
            f"an epoch has {batches_per_epoch} batches, fewer than accumulate {config.accumulate}; "
            "lower accumulate or batch_size"
        )
    steps = batches_per_epoch // config.accumulate
    return Stepper(config, objective.to(world.device), hider, world, steps_per_epoch=steps)


def make_model(config: TrainConfig) -> tuple[CotsModel, Preprocess]:
    """With the weights that a run starts from.

    Raises:
        ConfigError: if the model cannot be built.
        InputError: if weights cannot be loaded.
    """
    shipped = load_config(config.model)
    model = CotsModel(shipped.model.model_copy(update={"name": config.name}))
    if config.regression.when != "never" and model.text.width < model.config.embed_dim:
        raise ConfigError(
            f"text features {model.text.width} wide have no {model.config.embed_dim} directions; "
            "lower embed_dim or set regression.when=never"
        )
    initialise(model, config.init)
    return model, Preprocess(shipped.preprocess, load_tokenizer(config.init))


def make_batches(
    config: TrainConfig,
    examples: list[Example],
    cache: FeatureCache | None,
    captions: CaptionFeatures | None,
    preprocess: Preprocess,
    world: World,
) -> PairBatches:
    """Of a run's training data; features of frozen towers where there are some."""
    data = config.data
    resident = None
    if data.resident_side:
        with world.together(patient=True):  # one may lack the memory, or read more slowly
            resident = ResidentPictures.load(
                examples,
                preprocess,
                side=data.resident_side,
                device=world.device,
                folder=data.cache_dir,
                num_workers=data.num_workers,
                max_broken_share=data.max_broken_share,
            )
    return PairBatches(
        ShardOrder(data.train, block_size=data.block_size) if data.stream else examples,
        preprocess,
        config.augment,
        batch_size=config.batch_size,
        seed=config.seed,
        feature_cache=cache,
        captions=captions,
        resident=resident,
        rank=world.rank,
        world_size=world.size,
        num_workers=data.num_workers,
        num_frames=data.num_frames,
        max_broken_share=data.max_broken_share,
    )


def _feature_cache(
    config: TrainConfig, model: CotsModel, preprocess: Preprocess, examples: list[Example]
) -> FeatureCache | None:
    if not config.freeze_image:
        return None
    if config.data.stream:
        raise ConfigError("a stream has no feature cache; set data.stream or freeze_image to false")
    tower = model.image.requires_grad_(False).to(resolve_device(config.device))
    return cached_features(
        examples,
        tower,
        preprocess,
        config.augment,
        folder=config.data.cache_dir,
        seed=config.seed,
        bf16=config.precision == "bf16",
        max_broken_share=config.data.max_broken_share,
    )


def _fingerprint(part: object) -> str:
    """Of the weights of a network that a run takes as it is."""
    if part is None:
        return "-"
    digest = hashlib.sha256()
    for name, tensor in sorted(cast(nn.Module, part).state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _caption_features(
    config: TrainConfig, model: CotsModel, preprocess: Preprocess, examples: list[Example]
) -> CaptionFeatures | None:
    if not config.freeze_text:
        return None
    model.text.requires_grad_(False).to(resolve_device(config.device))
    texts = (text for example in examples for text in example.captions)
    return CaptionFeatures.embed(model, preprocess, texts, bf16=config.precision == "bf16")


def _projection_fit(
    config: TrainConfig,
    preprocess: Preprocess,
    examples: list[Example],
    cache: FeatureCache | None,
    captions: CaptionFeatures | None,
) -> Callable[..., None]:
    """What puts closed-form projections into a model."""

    def fit(model: CotsModel, *, share: float) -> None:
        assert cache is not None, "TrainConfig refuses regression without freeze_image"
        fit_projections(
            model,
            preprocess,
            examples,
            cache,
            config.regression,
            bf16=config.precision == "bf16",
            captions=captions,
            share=share,
        )

    return fit
