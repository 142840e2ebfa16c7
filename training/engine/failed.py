"""What a run that failed by itself leaves: its state and the pictures of its last step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.batches import Batch
from training.engine.states import StateFolder
from training.engine.world import World
from training.errors import TrainingError

FAILED = "failed"
"""The folder's name in that of a run."""

_NAMED = 64  # pictures that an error lists; the rest is in the state


def keep_failed(
    error: TrainingError,
    output: Path,
    step: int,
    state: dict[str, Any],
    group: Sequence[Batch],
    world: World,
) -> TrainingError:
    """Save the state beside the others, with what the step saw; all processes come here together.

    Returns:
        The error with the pictures and the place of the state.
    """
    own = [draw.example.id for batch in group for draw in batch.draws]
    names = list(dict.fromkeys(name for ids in world.gather_objects(own) for name in ids))
    folder = StateFolder(output / FAILED, keep=1)
    if world.is_main:
        folder.save(step, state | {"pictures": names})
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return TrainingError(
        f"{error}; pictures {', '.join(names[:_NAMED])}{more}; state in {folder.folder}"
    )
