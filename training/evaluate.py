"""Embed a data set and score it: what `cots evaluate` runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from cots_model.encoder import Encoder, Vectors
from training.data import Example
from training.metrics import RetrievalMetrics, retrieval_metrics

log = logging.getLogger(__name__)


def evaluate(
    encoder: Encoder, examples: Sequence[Example], *, batch_size: int = 8
) -> RetrievalMetrics:
    """R@1/5/10 both ways and the median ranks of a checkpoint on pictures with captions.

    Raises:
        InputError: if a picture cannot be decoded, or a score is not finite.
    """
    image_NE = _embed_images(encoder, examples, batch_size)
    texts, image_of_text_M = captions_of(examples)
    text_ME = encoder.encode_texts(texts, batch_size=batch_size)
    return retrieval_metrics(image_NE, text_ME, image_of_text_M)


def captions_of(examples: Sequence[Example]) -> tuple[list[str], np.ndarray]:
    """All captions in order, and for each the row of its picture, int64 `[M]`."""
    texts = [caption for example in examples for caption in example.captions]
    rows = np.repeat(np.arange(len(examples)), [len(e.captions) for e in examples])
    return texts, rows


def format_metrics(metrics: RetrievalMetrics) -> str:
    """A small table for people."""
    lines = [f"{'':<16}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>7}{'queries':>9}"]
    for name, side in (
        ("text -> image", metrics.text_to_image),
        ("image -> text", metrics.image_to_text),
    ):
        lines.append(
            f"{name:<16}{side.r1:>7.2f}{side.r5:>7.2f}{side.r10:>7.2f}"
            f"{side.median_rank:>7.1f}{side.num_queries:>9,}"
        )
    return "\n".join(lines)


def _embed_images(encoder: Encoder, examples: Sequence[Example], batch_size: int) -> Vectors:
    parts = [
        encoder.encode_images([example.picture() for example in batch])
        for batch in tqdm(
            _batches(examples, batch_size),
            total=-(-len(examples) // batch_size),
            desc="pictures",
            unit="batch",
            disable=None,
        )
    ]
    return np.concatenate(parts)


def _batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]
