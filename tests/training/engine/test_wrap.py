"""What cannot be executed together is refused before anything is spread."""

import copy

import pytest
import torch

from cots_model.errors import ConfigError
from training.config import EngineConfig
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
