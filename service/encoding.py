"""The encoder behind its queue: waiting texts are encoded together, waiting pictures likewise."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cots_model.cores import on_idle_core
from cots_model.encoder import Encoder, Vectors
from cots_model.errors import CotsError
from service.jobs import DeadlineError, Done
from service.worker import WorkerPool

T = TypeVar("T")

_TOGETHER = 32  # pictures in one forward pass
_TEXTS_TOGETHER = 256  # between two looks at the clock
_BATCH_S = 1.0
"""Longer batches are no faster, and would take pictures that came after the next text."""

_PROBES_APART = 100  # times as long as a picture takes: 1 % of the time goes into its probes
_LONGEST_APART_S = 60.0  # and more of a model that takes over 0.6 s


def _nobody(kind: str, size: int) -> None:
    """Batches that nobody counts."""


class ProbeError(CotsError):
    """The model runs and gives something else than unit vectors."""


class EncoderMemoryError(CotsError):
    """The device has no memory for even one text or picture."""


@dataclass(frozen=True)
class Texts:
    """Texts to embed; after `deadline_s` on the clock of `time.monotonic` nobody waits for them."""

    texts: tuple[str, ...]
    deadline_s: float = math.inf

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Pixels:
    """Preprocessed pictures to embed, each `[3,H,W]` float32; `deadline_s` as that of `Texts`."""

    imgs: tuple[Tensor, ...]
    deadline_s: float = math.inf

    def __len__(self) -> int:
        return len(self.imgs)


@dataclass(frozen=True)
class Encoded:
    """What became of a job.

    Attributes:
        z_BE: `[B,E]` float32 unit vectors, in order.
        cut_at_B: of each text the character from which on the model read no more; None where it
            read all, and of pictures.
    """

    z_BE: Vectors
    cut_at_B: tuple[int | None, ...]


@dataclass(frozen=True)
class EncodedText:
    """The unit vector `[E]` of a text, and `cut_at` as in `Encoded`."""

    z_E: Vectors
    cut_at: int | None


class TextCache:
    """The texts that were asked for last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._found: OrderedDict[str, EncodedText] = OrderedDict()

    def get(self, text: str) -> EncodedText | None:
        """A text, if it is there."""
        if text in self._found:
            self._found.move_to_end(text)
        return self._found.get(text)

    def add(self, text: str, found: EncodedText) -> None:
        """Keep one more, and drop the one that was not asked for longest."""
        self._found[text] = replace(found, z_E=np.array(found.z_E))  # not a view of its batch
        while len(self._found) > self._capacity:
            self._found.popitem(last=False)


class Embedder:
    """One encoder and one queue; the next batch begins on the cores that one leaves idle.

    Texts of different lengths share a padded batch, so a score may differ from the same query
    alone in the last float32 digits (below 1e-6); ids and their order are those of the scores.
    Texts that were asked for lately are not embedded again. A batch for which a GPU has no memory
    is halved; where that does not help, the probe fails too.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        capacity: int,
        max_batch: int,
        max_wait_s: float = 0.0,
        cached_texts: int = 0,
        on_batch: Callable[[str, int], None] = _nobody,
    ) -> None:
        """Start the thread, or two that take turns.

        Args:
            encoder: the model.
            capacity: jobs that may wait.
            max_batch: most texts or pictures encoded together, fewer if they would take over a
                second; a larger job goes alone.
            max_wait_s: longest time a job waits for others to be encoded with.
            cached_texts: how many texts are remembered.
            on_batch: told of each batch, `text` or `image`, and how many.
        """
        self.encoder = encoder
        self._on_batch = on_batch
        cores = torch.get_num_threads() if encoder.device.type == "cpu" else 1
        self._pool: WorkerPool[Texts | Pixels, Encoded] = WorkerPool(
            "encoder",
            self._encode,
            capacity=capacity,
            max_batch=max_batch,
            max_batch_s=_BATCH_S,
            overlap=cores > 1,
            cores=cores,
            max_wait_s=max_wait_s,
            size=len,
            work=len,
        )
        self._cache = TextCache(cached_texts)
        self._picture_due_s = 0.0
        self._is_warm = False

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._pool)

    @property
    def longest_s(self) -> float:
        """See `WorkerPool.longest_s`."""
        return self._pool.longest_s

    async def embed(self, job: Texts | Pixels, *, deadline_s: float) -> Done[Encoded]:
        """Embed; call it from one event loop.

        Raises:
            EncoderMemoryError: if the device has no memory for it.
            CotsError: what `WorkerPool.run` raises.
        """
        if isinstance(job, Pixels):
            due = Pixels(job.imgs, deadline_s)
            return await self._pool.run(due, deadline_s=deadline_s)
        found = {text: self._cache.get(text) for text in job.texts}
        missing = tuple(text for text, one in found.items() if one is None)
        done = Done(Encoded(np.empty((0, self.encoder.dim), np.float32), ()), 0.0, 0.0)
        if missing:
            done = await self._pool.run(Texts(missing, deadline_s), deadline_s=deadline_s)
        for text, z_E, cut_at in zip(missing, done.value.z_BE, done.value.cut_at_B, strict=True):
            found[text] = one = EncodedText(z_E, cut_at)
            self._cache.add(text, one)
        in_order = [cast("EncodedText", found[text]) for text in job.texts]
        z_BE = np.stack([one.z_E for one in in_order])
        encoded = Encoded(z_BE, tuple(one.cut_at for one in in_order))
        return Done(encoded, done.queue_ms, done.work_ms)

    def require_room(self, num_pictures: int, *, deadline_s: float) -> None:
        """Refuse pictures, before they are decoded, that `embed` would refuse if it got them now.

        Raises:
            QueueFullError: see `WorkerPool.run`.
        """
        self._pool.require_room(Pixels, num_pictures, deadline_s=deadline_s)

    async def probe(self, *, timeout_s: float) -> None:
        """Run one text and one picture through the model, ahead of all that waits.

        The picture only from time to time where it takes long: a model of the paper's size has a
        CPU for most of a second. The first good probe runs both twice, for the first pass is slow:
        so the pace of the second is known before anyone waits.

        Raises:
            ProbeError: if the vectors are not finite and of length one.
            DeadlineError: if the worker does not answer in time.
        """
        passes = 1 if self._is_warm else 2
        for _ in range(passes):
            await self._probe(Texts(("probe",)), timeout_s=timeout_s)
        if time.monotonic() < self._picture_due_s:
            return
        side = self.encoder.preprocess.image_size
        picture = self.encoder.preprocess.image(Image.new("RGB", (side, side), "grey"))
        for _ in range(passes):
            work_ms = await self._probe(Pixels((picture,)), timeout_s=timeout_s)
        self._is_warm = True
        pause_s = min(_PROBES_APART * work_ms / 1000, _LONGEST_APART_S)
        self._picture_due_s = time.monotonic() + pause_s

    async def _probe(self, job: Texts | Pixels, *, timeout_s: float) -> float:
        """How many milliseconds it took."""
        deadline_s = time.monotonic() + timeout_s
        done = await self._pool.run(job, deadline_s=deadline_s, urgent=True)
        z_BE = done.value.z_BE
        lengths = np.linalg.norm(z_BE, axis=1)
        if z_BE.shape != (1, self.encoder.dim) or not np.allclose(lengths, 1, atol=1e-3):
            raise ProbeError(f"the probe gave {z_BE.shape} of length {lengths}")
        return done.work_ms

    def close(self) -> None:
        """Take no more jobs."""
        self._pool.close()

    def join(self, *, until_s: float) -> bool:
        """Wait for its threads to end; see `WorkerPool.join`."""
        return self._pool.join(until_s=until_s)

    def _encode(self, jobs: Sequence[Texts | Pixels]) -> list[Encoded]:
        texts = [text for job in jobs if isinstance(job, Texts) for text in job.texts]
        imgs = [img for job in jobs if isinstance(job, Pixels) for img in job.imgs]
        assert not (texts and imgs), "the pool batches jobs of one type only"
        self._on_batch("text" if texts else "image", len(texts) or len(imgs))
        due_s = max(job.deadline_s for job in jobs)
        cut_at_B: list[int | None] = [None] * len(imgs)

        def encode_texts(part: Sequence[str]) -> Vectors:
            read = self.encoder.read_texts(part)
            cut_at_B.extend(read.cut_at_B)
            return read.z_BE

        if texts:
            z_BE = self._in_parts(encode_texts, texts, _TEXTS_TOGETHER, due_s)
        else:
            z_BE = self._in_parts(self._encode_pixels, imgs, _TOGETHER, due_s)
        ends = accumulate(map(len, jobs), initial=0)
        return [
            Encoded(z_BE[begin:end], tuple(cut_at_B[begin:end])) for begin, end in pairwise(ends)
        ]

    def _in_parts(
        self, encode: Callable[[Sequence[T]], Vectors], items: Sequence[T], most: int, due_s: float
    ) -> Vectors:
        """Embed so many at a time, as long as anybody waits for them."""
        found = []
        for start in range(0, len(items), most):
            if start and time.monotonic() >= due_s:
                raise DeadlineError("encoder: not finished before the deadline")
            is_last = start + most >= len(items)
            with on_idle_core(self._pool.next_may_begin() if is_last else None):
                found.append(self._as_fits(encode, items[start : start + most]))
        return np.concatenate(found)

    def _encode_pixels(self, imgs: Sequence[Tensor]) -> Vectors:
        # torch.stack would give each thread that calls it OpenMP helpers of its own
        img_BCHW = torch.from_numpy(np.stack([img.numpy() for img in imgs]))
        return self.encoder.encode_pixels(img_BCHW)

    def _as_fits(self, encode: Callable[[Sequence[T]], Vectors], items: Sequence[T]) -> Vectors:
        """Embed all at once, or half as many at a time where the memory does not suffice."""
        try:
            return encode(items)
        except torch.OutOfMemoryError as err:
            if len(items) == 1:
                raise EncoderMemoryError(
                    f"{self.encoder.device} has no memory for one item: {err}"
                ) from err
        middle = len(items) // 2
        halves = (items[:middle], items[middle:])
        return np.concatenate([self._as_fits(encode, half) for half in halves])
