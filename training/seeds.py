"""Seeds of single steps, so that a run that goes on draws what it would have drawn."""

from __future__ import annotations


def mix_seeds(*numbers: int) -> int:
    """One seed from several numbers: equal numbers, equal seeds, on every machine."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63 - 25)
    return seed
