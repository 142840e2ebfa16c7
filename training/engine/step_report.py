"""What one optimiser step did, and how it is logged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did, over all processes.

    Attributes:
        losses: mean over the kept pairs, by name; `total` is the weighted sum.
        accuracies: share of the hidden patches and words that were named rightly, by loss.
        kept: share of the pairs that the filter kept.
        mean: μ of the similarity queue; NaN while it is empty.
        std: its σ.
        threshold: below it a pair is dropped.
        grad_norm: before clipping.
        lr: base learning rate of the step, before `lr_scale`.
        is_full: whether the queues were full before it.
        image_spread: of the image queue after it, 1 - |mean of its rows|; NaN below two rows.
        text_spread: that of the text queue.
        dropped: of each dropped pair of this process: which batch, which row, its similarity.
    """

    losses: dict[str, float]
    accuracies: dict[str, float]
    kept: float
    mean: float
    std: float
    threshold: float
    grad_norm: float
    lr: float
    is_full: bool
    image_spread: float
    text_spread: float
    dropped: tuple[tuple[int, int, float], ...]

    def figures(self) -> dict[str, float]:
        """For the log."""
        return {
            **{f"loss/{name}": value for name, value in self.losses.items()},
            **{f"accuracy/{name}": value for name, value in self.accuracies.items()},
            "filter/kept": self.kept,
            "filter/mean": self.mean,
            "filter/std": self.std,
            "filter/threshold": self.threshold,
            "queue/image_spread": self.image_spread,
            "queue/text_spread": self.text_spread,
            "optimiser/grad_norm": self.grad_norm,
            "optimiser/lr": self.lr,
        }
