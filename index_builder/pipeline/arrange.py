"""Results put back into the order of the source, their pixels finished as they leave.

Shape letters: U units, C colours, V the 256 values of a byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cots_model.preprocess import Normalise, PicturePreprocess
from index_builder.pipeline.protocol import Pixels
from index_builder.pipeline.result import Decoded, Result
from index_builder.sources.entry import Candidate, Skip


@dataclass(frozen=True)
class Raw:
    """An item as it came from a decoding process: its bytes, perhaps not yet normalised."""

    candidate: Candidate
    about: Pixels
    data: bytes


class InOrder:
    """Holds what is ahead of the source's order.

    Attributes:
        head: number of the entry whose results come next.
    """

    def __init__(self, preprocess: PicturePreprocess) -> None:
        """Finish pixels by this preprocessing."""
        self._finish = Finish(preprocess)
        self._values: dict[int, deque[tuple[Raw | Decoded | Skip, bool]]] = {}
        self.head = 0

    def put(self, number: int, value: Raw | Decoded | Skip, *, last: bool = True) -> None:
        """Add the next value of an entry, and whether it is its last."""
        self._values.setdefault(number, deque()).append((value, last))

    def held(self, number: int) -> int:
        """How many values of an entry wait to be taken."""
        return len(self._values.get(number, ()))

    def drop(self, number: int) -> None:
        """Forget an entry's values: they will be made again."""
        self._values.pop(number, None)

    def take(self) -> Iterator[Result]:
        """All that can be given now."""
        while waiting := self._values.get(self.head):
            value, last = waiting.popleft()
            number = self.head
            if last:
                del self._values[number]
                self.head += 1
            yield Result(number, self._finish(value) if isinstance(value, Raw) else value, last)


class Finish:
    """Makes float32 pixels of bytes, equal to the bit to what `preprocess.image` gives.

    A byte has 256 values: each is normalised once, and then looked up. That is as fast as doing
    the sums, and wakes no threads beside the encoder's.
    """

    def __init__(self, preprocess: PicturePreprocess) -> None:
        """Look up by what the preprocessing's `normalise` gives, if it has one."""
        normalise = getattr(preprocess, "normalise", None)
        self._table_CV = _table(normalise) if isinstance(normalise, Normalise) else None

    def __call__(self, raw: Raw) -> Decoded:
        """The item, ready to be embedded."""
        about = raw.about
        numbers_U = np.frombuffer(raw.data, about.dtype).reshape(about.shape)
        if about.dtype == "uint8":
            pixels_U = self._normalised(numbers_U)
        else:
            pixels_U = numbers_U.astype(np.float32)  # a copy, that may be written to
        return Decoded(raw.candidate, about.stamp, about.sha256, pixels_U, about.clip)

    def _normalised(self, pixels_UCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        assert self._table_CV is not None, "bytes come from a preprocessing that can normalise"
        out_UCHW = np.empty(pixels_UCHW.shape, np.float32)
        for colour, row_V in enumerate(self._table_CV):
            np.take(row_V, pixels_UCHW[:, colour], out=out_UCHW[:, colour], mode="clip")
        return out_UCHW


def _table(normalise: Normalise) -> npt.NDArray[np.float32]:
    import torch

    values_3V1 = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[..., None]
    table_CV: npt.NDArray[np.float32] = normalise(values_3V1)[..., 0].numpy()
    return table_CV
