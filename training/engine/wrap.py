"""How the trained module and its momentum copy are executed: recomputed, compiled, distributed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from training.config import EngineConfig
from training.engine.blocks import check_compiles, checkpoint_blocks, compile_blocks
from training.engine.world import World
from training.objective import Objective


def wrap(
    objective: Objective, momentum: CotsModel, config: EngineConfig, world: World
) -> nn.Module:
    """Make both ready in place, and return what the forward pass must be called on.

    Names of parameters stay as they are, so that states and checkpoints do not depend on it.

    Raises:
        ConfigError: if a tower cannot recompute its blocks, nothing can be compiled here, or the
            image tower is to be split and kept in channels last.
    """
    splits = config.parallel == "fsdp" and world.size > 1
    if splits and config.channels_last:
        raise ConfigError(
            "engine.parallel=fsdp splits weights into rows and loses the order of "
            "engine.channels_last=true; use engine.parallel=ddp, or engine.channels_last=false"
        )
    if config.channels_last:
        for model in (objective.model, momentum):
            model.image.to(memory_format=torch.channels_last)
    if config.activation_checkpointing:
        checkpoint_blocks(objective.model)
    if config.compile:
        check_compiles(world.device)
        for model in (objective.model, momentum):
            compile_blocks(model)
    if world.size == 1:
        return objective
    if splits:
        from training.engine.fsdp import split

        split(objective, momentum)
        return objective
    local = [world.device] if world.device.type == "cuda" else None
    # Gradients are views of what travels, not a second copy.
    return DistributedDataParallel(objective, device_ids=local, gradient_as_bucket_view=True)
