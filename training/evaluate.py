"""Embed a data set and score it: what `cots evaluate` runs."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cots_model.encoder import Encoder, Vectors
from cots_model.errors import InputError
from cots_model.videos import NUM_FRAMES, pool_frames
from training.broken import BrokenCount
from training.cutoffs import Cutoff, score_cutoffs
from training.example import BrokenExampleError, Example
from training.metrics import Ints, RetrievalMetrics, retrieval_metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cutoffs:
    """What a lowest score keeps, and what a lowest share of a text's best score does."""

    min_score: list[Cutoff]
    share_of_best: list[Cutoff]


@dataclass(frozen=True)
class EmbeddedSet:
    """A data set as a model sees it: N pictures or videos, M texts, P pairs of them.

    Attributes:
        image_NE: unit vectors.
        text_ME: unit vectors.
        image_of_pair_P: row of the picture of each pair.
        text_of_pair_P: row of the text of each pair.
    """

    image_NE: Vectors
    text_ME: Vectors
    image_of_pair_P: Ints
    text_of_pair_P: Ints

    def metrics(self) -> RetrievalMetrics:
        """R@1/5/10 both ways and the median ranks.

        Raises:
            InputError: if a score is not finite.
        """
        return retrieval_metrics(
            self.image_NE, self.text_ME, self.image_of_pair_P, self.text_of_pair_P
        )

    def cutoffs(self) -> Cutoffs:
        """What a lowest score keeps; raises as `score_cutoffs`."""
        of = functools.partial(
            score_cutoffs, self.image_NE, self.text_ME, self.image_of_pair_P, self.text_of_pair_P
        )
        return Cutoffs(min_score=of(), share_of_best=of(of_best=True))


def embed(
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    batch_size: int = 8,
    num_frames: int = NUM_FRAMES,
    max_broken_share: float = 0.0,
    share_texts: bool = False,
) -> EmbeddedSet:
    """Embed pictures or videos with captions.

    Args:
        encoder: of the checkpoint.
        examples: each a row of the score matrix.
        batch_size: pictures or videos at a time.
        num_frames: of a video (paper: 16).
        max_broken_share: of examples that may be left out because they cannot be decoded, with
            their captions; the figures are then of another set, so that none is the default.
        share_texts: take a text that several pictures have for one query, to which each of them is
            right, as keywords are meant; the usual protocols take it for as many.

    Raises:
        InputError: if more than that are broken.
    """
    image_NE, examples = _embed_images(encoder, examples, batch_size, num_frames, max_broken_share)
    texts, image_of_pair_P = captions_of(examples)
    text_of_pair_P = np.arange(len(texts))
    if share_texts:
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        text_of_pair_P, texts = np.array([row_of[text] for text in texts]), list(row_of)
    text_ME = encoder.encode_texts(texts, batch_size=batch_size)
    return EmbeddedSet(image_NE, text_ME, image_of_pair_P, text_of_pair_P)


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


def format_cutoffs(cutoffs: Cutoffs) -> str:
    """Two small tables for people."""
    return "\n\n".join(
        _format_cutoffs(title, of)
        for title, of in (
            ("min_score", cutoffs.min_score),
            ("share of best", cutoffs.share_of_best),
        )
    )


def _format_cutoffs(title: str, cutoffs: Sequence[Cutoff]) -> str:
    """Rounded down, so that what is printed keeps no less."""
    lines = [f"{title:<13}{'right kept':>14}{'others kept':>14}"]
    for one in cutoffs:
        lowest = math.floor(1000 * one.lowest) / 1000
        kept = f"{one.right_percent:>12.2f} %{one.others_percent:>12.2f} %"
        lines.append(f"{lowest:>13.3f}{kept}")
    return "\n".join(lines)


def _embed_images(
    encoder: Encoder,
    examples: Sequence[Example],
    batch_size: int,
    num_frames: int,
    max_broken_share: float,
) -> tuple[Vectors, list[Example]]:
    """Unit vectors `[N,E]` of the examples that can be decoded, and these."""
    broken = BrokenCount(max_share=max_broken_share, num_expected=len(examples))
    parts, kept = [], []
    for batch in tqdm(
        _batches(examples, batch_size),
        total=-(-len(examples) // batch_size),
        desc="pictures",
        unit="batch",
        disable=None,
    ):
        good = _decoded(batch, num_frames, broken)
        if good:
            parts.append(_encode(encoder, [frames for _, frames in good]))
            kept += [example for example, _ in good]
    broken.finish("evaluation")
    if not kept:
        raise InputError("no picture is left to score; mend the data")
    return np.concatenate(parts), kept


def _decoded(
    batch: Sequence[Example], num_frames: int, broken: BrokenCount
) -> list[tuple[Example, list[Image.Image]]]:
    good, errors = [], []
    for example in batch:
        try:
            good.append((example, example.frames(num_frames)))
        except BrokenExampleError as err:
            errors.append(err)
    broken.add(len(batch), errors)
    return good


def _encode(encoder: Encoder, frames: Sequence[list[Image.Image]]) -> Vectors:
    frame_FE = encoder.encode_images([img for imgs in frames for img in imgs])
    if len(frame_FE) == len(frames):
        return frame_FE
    pooled_NE = pool_frames(torch.from_numpy(frame_FE), [len(imgs) for imgs in frames])
    return np.asarray(pooled_NE.numpy())


def _batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]
