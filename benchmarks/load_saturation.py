"""A saturated server beside its encoder alone, measured in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Round:
    """What a server did between two measurements of the encoder alone.

    Attributes:
        one_client_ms: median latency of one client.
        step: figures of the rate that saturates it, as of `benchmarks.load.at_rate`.
    """

    one_client_ms: float
    step: dict[str, Any]


def compare(
    rounds: Sequence[Round], *, offline_per_s: Sequence[float], bare_ms: Sequence[float]
) -> dict[str, Any]:
    """Ratios of each round to the mean of the measurements before and after it, and their medians.

    Args:
        rounds: in order.
        offline_per_s: throughput of the encoder alone, before each round and after the last.
        bare_ms: latency of encoding and searching alone, likewise.
    """
    offline = [float(np.mean(pair)) for pair in pairwise(offline_per_s)]
    bare = [float(np.mean(pair)) for pair in pairwise(bare_ms)]
    shares = [r.step["answered_per_s"] / per_s for r, per_s in zip(rounds, offline, strict=True)]
    waits = [r.one_client_ms / ms for r, ms in zip(rounds, bare, strict=True)]
    refused = [r.step["rejected_ms"]["p99"] for r in rounds if r.step["rejected_ms"]]
    return {
        "offline_per_s": list(offline_per_s),
        "bare_ms": list(bare_ms),
        "rounds": [{"one_client_ms": r.one_client_ms, **r.step} for r in rounds],
        "of_offline": _spread(shares),
        "one_client_of_bare": _spread(waits),
        "p99_of_429_ms": _spread(refused) if refused else None,
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(float(np.median(values)), 3),
        "each": [round(float(value), 3) for value in values],
    }
