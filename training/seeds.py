"""Seeds of single steps and single pairs, so that a run that goes on draws what it would have.

Shape letters: B rows, K numbers of a row.
"""

from __future__ import annotations

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64 (Steele, Lea and Flood 2014)


def mix_seeds(*numbers: int) -> int:
    """One seed from several numbers: equal numbers, equal seeds, on every machine."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63 - 25)
    return seed


def row_seeds(seed: int, first: int, count: int) -> np.ndarray:
    """Seeds uint64 `[B]` of `count` rows from row `first` on; a row's is its own in any batch."""
    row_B = np.arange(first, first + count, dtype=np.uint64)
    seed_1 = np.array([seed], dtype=np.uint64)
    return _scramble(_scramble(seed_1 + _GAMMA) + row_B * _GAMMA)


def uniform(seed_B: np.ndarray, count: int, *, start: int = 0) -> np.ndarray:
    """Numbers float64 `[B,K]` in [0, 1): those from `start` on of each row's own sequence.

    A row's numbers depend on its seed and their place alone, neither on other rows nor on `count`.
    """
    place_K = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    bits_BK = _scramble(seed_B[:, None] + place_K * _GAMMA)
    return np.asarray((bits_BK >> np.uint64(11)) * 2.0**-53)


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64; sums wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: np.ndarray = x ^ (x >> np.uint64(31))
    return scrambled
