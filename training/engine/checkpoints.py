"""The checkpoints that a run leaves: the last, scored, and a copy of the best."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cots_model.checkpoint import CARD_FILE, CONFIG_FILE, HASHED_FILES
from cots_model.config import ModelConfig
from cots_model.encoder import Encoder, resolve_device
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from training.config import TrainConfig
from training.evaluate import embed, format_metrics
from training.example import Example
from training.metrics import RetrievalMetrics
from training.report import model_card

log = logging.getLogger(__name__)

BEST = "best"


@dataclass(frozen=True)
class Done:
    """How far a run is, for the card.

    Attributes:
        num_pairs: pictures with captions.
        world_size: processes.
        step: optimiser steps.
        wall_s: seconds of training.
    """

    num_pairs: int
    world_size: int
    step: int
    wall_s: float


def write_checkpoint(
    config: TrainConfig,
    model_config: ModelConfig,
    weights: dict[str, Any],
    preprocess: Preprocess,
    *,
    finish: Callable[[CotsModel], None] | None,
    evaluated: list[Example],
    done: Done,
) -> tuple[str, RetrievalMetrics | None]:
    """Write the online model, score what was written, and put the figures on its card.

    Args:
        config: of the run.
        model_config: of the model.
        weights: of the whole model, on the CPU.
        preprocess: of the model.
        finish: changes the model before it is written.
        evaluated: scored; may be empty.
        done: how far the run is.

    Returns:
        The checkpoint's fingerprint, and its scores if there are any.

    Raises:
        CotsError: if it cannot be written or scored.
    """
    model = CotsModel(model_config)
    model.load_state_dict(weights)
    if finish is not None:
        finish(model.to(resolve_device(config.device)))
    folder, metrics = config.output, None
    fingerprint = model.save_pretrained(folder, preprocess, card="", storage=config.storage)
    if evaluated:
        metrics = embed(
            Encoder.load(folder, device=config.device),
            evaluated,
            num_frames=config.data.num_frames,
            max_broken_share=config.data.max_broken_share,
        ).metrics()
        log.info("scores\n%s", format_metrics(metrics))
    card = model_card(
        config,
        metrics,
        num_pairs=done.num_pairs,
        step_pairs=config.batch_size * config.accumulate * done.world_size,
        step=done.step,
        wall_s=done.wall_s,
    )
    (folder / CARD_FILE).write_text(card, "utf-8")
    return fingerprint, metrics


def keep_if_best(folder: Path, metrics: RetrievalMetrics, best_r1: float) -> float:
    """Copy the checkpoint to `best` if its mean R@1 is higher; returns the higher one."""
    r1 = (metrics.text_to_image.r1 + metrics.image_to_text.r1) / 2
    if r1 <= best_r1:
        return best_r1
    best = folder / BEST
    best.mkdir(exist_ok=True)
    for name in (*HASHED_FILES, CONFIG_FILE, CARD_FILE):
        shutil.copy2(folder / name, best / name)
    return r1


def figures_of(metrics: RetrievalMetrics) -> dict[str, float]:
    """For the log."""
    sides = {"text_to_image": metrics.text_to_image, "image_to_text": metrics.image_to_text}
    return {
        f"{name}/r{k}": value
        for name, side in sides.items()
        for k, value in ((1, side.r1), (5, side.r5), (10, side.r10))
    }
