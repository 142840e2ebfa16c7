"""What decoding makes of a listed entry.

Shape letters: U units embedded one by one (a picture is one, a video has 16), C colours, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index_builder.content import Stamp
from index_builder.sources.entry import Candidate, Skip


@dataclass(frozen=True)
class Clip:
    """What the frames of one item of a video are.

    Attributes:
        times_s: presentation time of each frame, in seconds from the start of the video.
        start_s: where the segment begins; `None` for a whole video.
        end_s: where it ends.
        duration_s: length of the whole video.
    """

    times_s: tuple[float, ...]
    start_s: float | None
    end_s: float | None
    duration_s: float


@dataclass(frozen=True)
class Decoded:
    """One item ready to be embedded.

    Attributes:
        candidate: which entry it is of.
        stamp: size and time of the original.
        sha256: hex digest of the original's bytes.
        pixels_U: preprocessed pixels of its units, `[U,3,H,W]` float32; of an ensemble `[U,X]`.
        clip: of a video, what its frames are.
    """

    candidate: Candidate
    stamp: Stamp
    sha256: str
    pixels_U: npt.NDArray[np.float32]
    clip: Clip | None = None


@dataclass(frozen=True)
class Result:
    """One step in the decoding of one entry; results come in the order of the entries.

    An entry gives any number of `Decoded` or `Skip` values (a long video one per segment), and its
    last result is marked.

    Attributes:
        number: place of the entry in the source, from 0.
        value: what came of it.
        last: whether nothing more comes of this entry.
    """

    number: int
    value: Decoded | Skip
    last: bool = True
