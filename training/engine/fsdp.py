"""Splitting the model over processes (FSDP2), for towers that do not fit one GPU."""

from __future__ import annotations

from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from cots_model.model import CotsModel
from training.engine.blocks import blocks_of
from training.objective import Objective


def split(objective: Objective, momentum: CotsModel) -> None:
    """Split the parameters of the trained module and of its momentum copy, in place.

    Each block of a tower is gathered when it runs; all else, heads and embeddings among it, with
    the whole.
    """
    for model in (objective.model, momentum):
        for block in blocks_of(model):
            fully_shard(block)
    fully_shard(objective)
    fully_shard(momentum, reshard_after_forward=True)  # no backward pass will do it
    # These are called from outside, as `forward` is.
    for name in ("encode_image", "encode_text", "project_image", "project_text"):
        register_fsdp_forward_method(momentum, name)
