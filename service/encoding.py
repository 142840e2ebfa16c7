"""The encoder behind its queue: waiting texts are encoded together, waiting pictures likewise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cots_model.encoder import Encoder, Vectors
from cots_model.errors import CotsError
from service.worker import Done, WorkerPool


def _nobody(kind: str, size: int) -> None:
    """Batches that nobody counts."""


class ProbeError(CotsError):
    """The model runs and gives something else than unit vectors."""


@dataclass(frozen=True)
class Texts:
    """Texts to embed."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Pixels:
    """Preprocessed pictures to embed, each `[3,H,W]` float32."""

    imgs: tuple[Tensor, ...]


class Embedder:
    """One encoder, one thread, one queue.

    Texts of different lengths share a padded batch, so a score may differ from the same query
    alone in the last float32 digits (below 1e-6); ids and their order are those of the scores.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        capacity: int,
        max_batch: int,
        on_batch: Callable[[str, int], None] = _nobody,
    ) -> None:
        """Start the thread.

        Args:
            encoder: the model.
            capacity: jobs that may wait.
            max_batch: most jobs encoded together.
            on_batch: told of each batch, `text` or `image`, and how many.
        """
        self.encoder = encoder
        self._on_batch = on_batch
        self._pool: WorkerPool[Texts | Pixels, Vectors] = WorkerPool(
            "encoder", self._encode, capacity=capacity, max_batch=max_batch
        )

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._pool)

    async def embed(self, job: Texts | Pixels, *, deadline_s: float) -> Done[Vectors]:
        """Embed: `[B,E]` float32 unit vectors, in order. Raises what `WorkerPool.run` raises."""
        return await self._pool.run(job, deadline_s=deadline_s)

    async def probe(self, *, timeout_s: float) -> None:
        """Run one text and one picture through the model, ahead of all that waits.

        Raises:
            ProbeError: if the vectors are not finite and of length one.
            DeadlineError: if the worker does not answer in time.
        """
        side = self.encoder.preprocess.image_size
        picture = self.encoder.preprocess.image(Image.new("RGB", (side, side), "grey"))
        for job in (Texts(("probe",)), Pixels((picture,))):
            deadline_s = time.monotonic() + timeout_s
            done = await self._pool.run(job, deadline_s=deadline_s, urgent=True)
            lengths = np.linalg.norm(done.value, axis=1)
            if done.value.shape != (1, self.encoder.dim) or not np.allclose(lengths, 1, atol=1e-3):
                raise ProbeError(f"the probe gave {done.value.shape} of length {lengths}")

    def close(self) -> None:
        """Take no more jobs."""
        self._pool.close()

    def join(self, *, until_s: float) -> bool:
        """Wait for the thread to end; see `WorkerPool.join`."""
        return self._pool.join(until_s=until_s)

    def _encode(self, jobs: Sequence[Texts | Pixels]) -> list[Vectors]:
        texts = [text for job in jobs if isinstance(job, Texts) for text in job.texts]
        imgs = [img for job in jobs if isinstance(job, Pixels) for img in job.imgs]
        assert not (texts and imgs), "the pool batches jobs of one type only"
        self._on_batch("text" if texts else "image", len(texts) or len(imgs))
        z_BE = self.encoder.encode_texts(texts) if texts else self._encode_pixels(imgs)
        sizes = [len(job.texts if isinstance(job, Texts) else job.imgs) for job in jobs]
        return np.split(z_BE, np.cumsum(sizes)[:-1])

    def _encode_pixels(self, imgs: list[Tensor], batch_size: int = 32) -> Vectors:
        parts = [
            self.encoder.encode_pixels(torch.stack(imgs[start : start + batch_size]))
            for start in range(0, len(imgs), batch_size)
        ]
        return np.concatenate(parts)
