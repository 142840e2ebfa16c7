"""What cannot be executed together is refused before anything is spread."""

import copy

import pytest
import torch

from cots_model.config import PreprocessConfig
from cots_model.errors import ConfigError
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer
from training.batches import PairBatches
from training.config import AugmentConfig, EngineConfig
from training.engine.hiding import Hider
from training.engine.stepper import Stepper
from training.engine.world import World
from training.engine.wrap import wrap
from training.objective import Objective

CPU = torch.device("cpu")


def test_a_split_tower_cannot_keep_channels_last(configure, model):
    config = EngineConfig(parallel="fsdp", channels_last=True)
    objective = Objective(model, configure().objective)
    with pytest.raises(ConfigError, match=r"use engine\.parallel=ddp, or engine\.channels_last=f"):
        wrap(objective, copy.deepcopy(model), config, World(0, 2, CPU))
    assert wrap(objective, copy.deepcopy(model), config, World(0, 1, CPU)) is objective


def is_pixel_by_pixel(weight: torch.Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_orders_the_convolutions_of_both_models(configure, convolutional, examples):
    """And changes no loss but for rounding."""
    preprocess = Preprocess(PreprocessConfig(image_size=64, max_tokens=32), make_tokenizer())
    made = PairBatches(examples, preprocess, AugmentConfig(), batch_size=8, seed=0)
    batches, losses = list(made.epoch(0))[:2], []
    for value in ("false", "true"):
        config = configure(f"engine.channels_last={value}")
        objective = Objective(copy.deepcopy(convolutional), config.objective)
        hider = Hider(config.objective, objective.model, preprocess, None)
        stepper = Stepper(config, objective, hider, World(0, 1, CPU), steps_per_epoch=4)
        for model in (objective.model, stepper.momentum.module):
            kernels = [p for p in model.image.parameters() if p.dim() == 4]
            assert len(kernels) > 40
            assert all(map(is_pixel_by_pixel, kernels)) == (value == "true")
        losses.append([stepper.run([batch]).losses for batch in batches])
    assert losses[0][1]["total"] > 0.1
    for usual, ordered in zip(*losses, strict=True):
        assert ordered == pytest.approx(usual, rel=1e-3, abs=1e-4)
