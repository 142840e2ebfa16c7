"""Explanations behind a queue of their own: which word of a text is where in a picture."""

from __future__ import annotations

import base64
import functools
import io
import threading
import time
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from cots_model.encoder import Encoder
from cots_model.errors import CotsError
from cots_model.explainer import (
    Explainer,
    WordMap,
    check_explainable,
    heated,
    seen_part,
    word_spans,
)
from service.encoding import EncoderMemoryError
from service.errors import invalid
from service.jobs import DeadlineError, Done
from service.schemas import ExplainedWord
from service.worker import WorkerPool

MAX_WORDS = 32
"""Each costs a pass back through the image tower."""

_OVERLAY_PX = 384


@dataclass(frozen=True)
class Shown:
    """A picture as it waits to be explained: no larger than it is needed.

    Attributes:
        pixels_CHW: preprocessed.
        base: what overlays lie over.
    """

    pixels_CHW: Tensor
    base: Image.Image


def shown(encoder: Encoder, img: Image.Image) -> Shown:
    """A decoded RGB picture, made ready."""
    base = seen_part(encoder.text_preprocess, img).copy()
    base.thumbnail((_OVERLAY_PX, _OVERLAY_PX))
    return Shown(encoder.text_preprocess.image(img), base)


def count_words(encoder: Encoder, text: str) -> int:
    """How many words the model reads of a text.

    Raises:
        ApiError: 422 if there is none, more than `MAX_WORDS`, or more than the model reads.
    """
    preprocess = encoder.text_preprocess
    count = len(word_spans(preprocess, text))
    if not count:
        raise invalid("text_empty", "text has no word to look for; give some", param="text")
    if preprocess.tokens([text]).cut_at_B != (None,):
        most = preprocess.config.max_tokens
        message = f"text is longer than the {most} tokens that the model reads; shorten it"
        raise invalid("text_too_long", message, param="text")
    if count > MAX_WORDS:
        message = f"text has {count} words; at most {MAX_WORDS} are accepted; shorten it"
        raise invalid("text_too_long", message, param="text")
    return count


@dataclass(frozen=True)
class ExplainJob:
    """A text to be found in a picture.

    Attributes:
        picture: from `shown`.
        text: what to find.
        num_words: of the text, from `count_words`.
        overlay: whether the maps are drawn on the picture.
        start_layer: of the image tower, the first that counts.
        deadline_s: on the clock of `time.monotonic`.
        left: set when nobody waits for it any more.
    """

    picture: Shown
    text: str
    num_words: int
    overlay: bool
    start_layer: int
    deadline_s: float
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def work(self) -> int:
        """Half of what a word takes, a drawing as much, and the pass forward as a word."""
        return 2 + self.num_words * (3 if self.overlay else 2)

    def go_on(self) -> None:
        """Between two words or drawings.

        Raises:
            DeadlineError: if the time is over, or nobody waits.
        """
        if self.left.is_set() or time.monotonic() >= self.deadline_s:
            raise DeadlineError("explain: not finished before the deadline")


@dataclass(frozen=True)
class Answer:
    """The maps of a text's words, as they are sent."""

    similarity: float
    words: list[ExplainedWord]


class Explaining:
    """One thread that explains what the encoder finds, while the encoder goes on.

    It has the encoder's weights in modules of its own, made when the first request comes.
    """

    def __init__(self, encoder: Encoder, *, capacity: int) -> None:
        """Start the thread.

        Args:
            encoder: whose vectors are explained.
            capacity: jobs that may wait.
        """
        self._encoder = encoder
        self._pool: WorkerPool[ExplainJob | None, Answer | None] = WorkerPool(
            "explain",
            lambda jobs: [None if job is None else self._explain(job) for job in jobs],
            capacity=capacity,
            work=lambda job: 0 if job is None else job.work,
        )

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._pool)

    @property
    def longest_s(self) -> float:
        """See `WorkerPool.longest_s`."""
        return self._pool.longest_s

    async def run(self, job: ExplainJob) -> Done[Answer]:
        """Explain.

        Raises:
            EncoderMemoryError: if the device has no memory for it.
            QueueFullError, DeadlineError: see `WorkerPool.run`.
        """
        try:
            done = await self._pool.run(job, deadline_s=job.deadline_s)
        finally:
            job.left.set()
        assert done.value is not None
        return Done(done.value, done.queue_ms, done.work_ms)

    async def probe(self, *, timeout_s: float) -> None:
        """Have the thread do nothing, ahead of all that waits.

        Raises:
            DeadlineError: if it does not come to it in time.
        """
        await self._pool.run(None, deadline_s=time.monotonic() + timeout_s, urgent=True)

    def close(self) -> None:
        """Take no more jobs."""
        self._pool.close()

    def join(self, *, until_s: float) -> bool:
        """Wait for the thread to end; see `WorkerPool.join`."""
        return self._pool.join(until_s=until_s)

    @functools.cached_property
    def _explainer(self) -> Explainer:
        return Explainer.of(self._encoder)

    def _explain(self, job: ExplainJob) -> Answer:
        try:
            found = self._explainer.words_of(
                job.picture.pixels_CHW,
                job.text,
                start_layer=job.start_layer,
                before_word=job.go_on,
            )
        except torch.OutOfMemoryError as err:
            raise EncoderMemoryError(f"no memory to explain: {err}") from err
        return Answer(found.similarity, [_told(job, word) for word in found.words])


def _told(job: ExplainJob, word: WordMap) -> ExplainedWord:
    return ExplainedWord(
        word=word.word,
        start=word.start,
        end=word.end,
        similarity=word.similarity,
        map=[[round(level, 4) for level in row] for row in word.level_hw.tolist()],
        overlay=_drawn(job, word) if job.overlay else None,
    )


def _drawn(job: ExplainJob, word: WordMap) -> str:
    job.go_on()
    out = io.BytesIO()
    heated(job.picture.base, word.level_hw).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def require_explainable(encoder: Encoder, start_layer: int) -> None:
    """Refuse at once what no picture and no text could mend.

    Raises:
        ApiError: 422 if the model is an ensemble, in int8 or without maps, or has fewer layers.
    """
    try:
        layers = check_explainable(encoder)
    except CotsError as err:
        raise invalid("not_explainable", str(err)) from err
    if start_layer >= layers:
        message = (
            f"start_layer is {start_layer}; the image tower has {layers} layers, "
            f"so 0 to {layers - 1} are accepted"
        )
        raise invalid("invalid_value", message, param="start_layer")
