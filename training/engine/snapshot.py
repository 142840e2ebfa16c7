"""Everything a run needs to go on exactly, as one dictionary of tensors and plain values.

Random numbers are no part of it: every step seeds its own from (seed, step, rank).
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from training.engine.stepper import Stepper

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """Weights on the CPU; of a split module gathered, on the main process alone.

    All processes must call it.
    """
    return cast(dict[str, Tensor], get_model_state_dict(module, options=_FULL))


def capture(stepper: Stepper) -> dict[str, Any]:
    """The state of a stepper; all processes must call it, the main one's counts."""
    return {
        "step": stepper.step,
        "objective": full_weights(stepper.objective),
        "momentum": full_weights(stepper.momentum.module),
        "optimiser": get_optimizer_state_dict(stepper.objective, stepper.optimiser, options=_FULL),
        "queues": {name: value.cpu() for name, value in stepper.queues.state_dict().items()},
    }


def restore(stepper: Stepper, state: dict[str, Any]) -> None:
    """Put a captured state back; all processes must call it with the same state."""
    options = _SPREAD if stepper.world.size > 1 else _FULL
    set_model_state_dict(stepper.objective, state["objective"], options=options)
    set_model_state_dict(stepper.momentum.module, state["momentum"], options=options)
    set_optimizer_state_dict(
        stepper.objective, stepper.optimiser, state["optimiser"], options=options
    )
    stepper.queues.load_state_dict(state["queues"])
    stepper.step = state["step"]
