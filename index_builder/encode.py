"""The entries of one part become vectors.

Batches never cross the end of a part, so the bytes of a part depend on the part alone: not on what
was embedded before it, nor on where.

Shape letters: B units of a batch, F frames of a video, N items, E dimensions.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from cots_model.encoder import Encoder
from cots_model.errors import CotsError
from cots_model.videos import NUM_FRAMES, pool_frames
from index_builder.items import Item
from index_builder.manifest import Modality
from index_builder.parts import PartRows
from index_builder.pipeline.result import Decoded
from index_builder.segments import segment_id
from index_builder.sources.entry import Candidate, Skip
from index_builder.vectors import Vectors

_UNIT_TOLERANCE = 1e-3


@dataclass(eq=False)
class _Slot:
    """One item or skip of the part, in the order of the entries."""

    offset: int
    item: Item | None = None
    skip: Skip | None = None
    num_units: int = 0
    units: list[Vectors] = field(default_factory=list)
    times_F: tuple[float, ...] = ()
    vector_E: Vectors | None = None
    frames_FE: np.ndarray | None = None


class PartEncoder:
    """Collects the entries of one part and embeds them in batches."""

    def __init__(self, encoder: Encoder, *, modality: Modality, batch_size: int) -> None:
        """Start an empty part."""
        self._encoder = encoder
        self._modality = modality
        self._batch_size = batch_size
        self._slots: list[_Slot] = []
        self._waiting: deque[_Slot] = deque()
        self._units: deque[np.ndarray | str] = deque()

    def holds(self, offset: int) -> bool:
        """Whether something came of entry `offset`, the last one that anything came of."""
        return bool(self._slots) and self._slots[-1].offset == offset

    def skip(self, offset: int, skip: Skip) -> None:
        """Leave out what came of entry `offset`."""
        self._slots.append(_Slot(offset, skip=skip))

    def reuse(
        self,
        offset: int,
        item: Item,
        vector_E: Vectors,
        frames_FE: np.ndarray | None = None,
        times_F: np.ndarray | None = None,
    ) -> None:
        """Take an item over from the published version."""
        times = () if times_F is None else tuple(times_F.tolist())
        slot = _Slot(offset, item, vector_E=vector_E, frames_FE=frames_FE, times_F=times)
        self._slots.append(slot)

    def add(self, offset: int, decoded: Decoded) -> None:
        """Embed the units of a decoded picture or video."""
        times_F = decoded.clip.times_s if decoded.clip else ()
        slot = _Slot(offset, _item(decoded), num_units=len(decoded.pixels_U), times_F=times_F)
        self._enqueue(slot, list(decoded.pixels_U))

    def add_text(self, offset: int, candidate: Candidate) -> None:
        """Embed a text."""
        self._enqueue(_Slot(offset, text_item(candidate), num_units=1), [candidate.text or ""])

    def finish(self) -> PartRows:
        """Embed what is left, and give all rows of the part."""
        while self._units:
            self._encode(min(self._batch_size, len(self._units)))
        kept = [slot for slot in self._slots if slot.skip is None]
        vectors_NE = np.zeros((len(kept), self._encoder.dim), np.float32)
        for row, slot in enumerate(kept):
            vectors_NE[row] = slot.vector_E
        frames_NFE, times_NF = self._frames(kept)
        return PartRows(
            items=[slot.item for slot in kept if slot.item is not None],
            vectors_NE=vectors_NE,
            offsets=[slot.offset for slot in kept],
            skips=[(slot.offset, slot.skip) for slot in self._slots if slot.skip is not None],
            frames_NFE=frames_NFE,
            times_NF=times_NF,
        )

    def _frames(self, kept: list[_Slot]) -> tuple[np.ndarray | None, np.ndarray | None]:
        if self._modality != "video":
            return None, None
        frames_NFE = np.zeros((len(kept), NUM_FRAMES, self._encoder.dim), np.float16)
        times_NF = np.zeros((len(kept), NUM_FRAMES), np.float64)
        for row, slot in enumerate(kept):
            frames_NFE[row], times_NF[row] = slot.frames_FE, slot.times_F
        return frames_NFE, times_NF

    def _enqueue(self, slot: _Slot, units: list[np.ndarray] | list[str]) -> None:
        self._slots.append(slot)
        self._waiting.append(slot)
        self._units.extend(units)
        while len(self._units) >= self._batch_size:
            self._encode(self._batch_size)

    def _encode(self, num_units: int) -> None:
        batch = [self._units.popleft() for _ in range(num_units)]
        try:
            z_BE = self._embed(batch)
        except torch.cuda.OutOfMemoryError as err:
            raise CotsError(
                f"the GPU has no memory for a batch of {num_units} ({str(err).split('. ')[0]}); "
                "take a smaller --batch-size, or another --device"
            ) from err
        for z_E in z_BE:
            slot = self._waiting[0]
            slot.units.append(z_E)
            if len(slot.units) == slot.num_units:
                self._settle(self._waiting.popleft())

    def _embed(self, batch: list[np.ndarray | str]) -> Vectors:
        if self._modality == "text":
            return self._encoder.encode_texts([str(text) for text in batch], batch_size=len(batch))
        return self._encoder.encode_pixels(torch.from_numpy(np.stack(batch)))

    def _settle(self, slot: _Slot) -> None:
        """All units of an item are embedded: check them, and make its vector."""
        assert slot.item is not None
        units_FE = np.stack(slot.units)
        slot.units = []
        length = _not_one(units_FE)
        slot.vector_E = units_FE[0]
        if length is None and self._modality == "video":
            [slot.vector_E] = pool_frames(torch.from_numpy(units_FE), [len(units_FE)]).numpy()
            slot.frames_FE = units_FE.astype(np.float16)
            length = _not_one(slot.vector_E[None])
        if length is not None:
            why = f"the model gave a vector of length {length} for it; a unit vector is needed"
            slot.skip = Skip(slot.item.id, slot.item.uri, "bad_embedding", why)


def _not_one(vectors_NE: Vectors) -> float | None:
    """The length of the first vector that is no unit vector (NaN included), if there is one."""
    for length in np.linalg.norm(vectors_NE, axis=1).tolist():
        if not abs(length - 1.0) < _UNIT_TOLERANCE:
            return float(length)
    return None


def text_item(candidate: Candidate) -> Item:
    """The item of a text: its bytes are the text's own in UTF-8."""
    data = (candidate.text or "").encode()
    return Item(
        id=candidate.id,
        uri=candidate.uri,
        size_bytes=len(data),
        mtime_s=candidate.stamp.mtime_s if candidate.stamp else 0.0,
        sha256=hashlib.sha256(data).hexdigest(),
        text=candidate.text,
        metadata=candidate.metadata,
    )


def refreshed_item(old: Item, candidate: Candidate) -> Item:
    """The item of an unchanged entry, with metadata, place and time as the source has them now."""
    if candidate.text is not None:
        return text_item(candidate)
    return replace(
        old,
        uri=candidate.uri,
        mtime_s=candidate.stamp.mtime_s if candidate.stamp else old.mtime_s,
        offset_bytes=candidate.location.offset_bytes,
        metadata=candidate.metadata,
    )


def _item(decoded: Decoded) -> Item:
    candidate, clip = decoded.candidate, decoded.clip
    item_id = candidate.id
    if clip is not None and clip.start_s is not None and clip.end_s is not None:
        item_id = segment_id(candidate.id, clip.start_s, clip.end_s)
    return Item(
        id=item_id,
        uri=candidate.uri,
        size_bytes=decoded.stamp.size_bytes,
        mtime_s=decoded.stamp.mtime_s,
        sha256=decoded.sha256,
        offset_bytes=candidate.location.offset_bytes,
        start_s=clip.start_s if clip else None,
        end_s=clip.end_s if clip else None,
        duration_s=clip.duration_s if clip else None,
        metadata=candidate.metadata,
    )
