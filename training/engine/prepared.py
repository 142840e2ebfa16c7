"""A batch on its way through a step: with keys and hidden tokens, and judged by the filter."""

from __future__ import annotations

from dataclasses import dataclass

from training.batches import Batch
from training.filter import FilterResult
from training.objective import Hidden, Keys


@dataclass(frozen=True)
class Encoded:
    """A batch with its keys and what is hidden in it."""

    batch: Batch
    keys: Keys
    hidden: Hidden


@dataclass(frozen=True)
class Judged(Encoded):
    """With everything that needs no gradient."""

    judged: FilterResult
