"""What the builder and its decoding processes say to each other, over one pipe for each process.

The builder sends an `Order`, and behind it the bytes of the original where it has fetched them.
The process answers with any number of `Progress` and `Pixels`, each `Pixels` followed by its raw
bytes, and ends the order with a `Pixels` that is the last, a `Jpeg` or a `Failure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cots_model.preprocess import PicturePreprocess
from index_builder.content import Location, Stamp
from index_builder.pipeline.limits import IMAGE_MEMORY_BYTES
from index_builder.pipeline.result import Clip

READY = "ready"
"""Sent once, when a process has imported what it needs."""

NUM_FRAMES = 16


@dataclass(frozen=True)
class Settings:
    """What a decoding process is told when it starts.

    Attributes:
        preprocess: turns a picture into numbers.
        modality: what the originals are.
        num_frames: frames of a clip.
        segment_s: length of the segments that a video is cut into; `None` for whole videos.
        memory_bytes: how much memory the process may add to what it starts with.
    """

    preprocess: PicturePreprocess
    modality: Literal["image", "video"] = "image"
    num_frames: int = NUM_FRAMES
    segment_s: float | None = None
    memory_bytes: int = IMAGE_MEMORY_BYTES


@dataclass(frozen=True)
class Order:
    """One original to decode.

    Attributes:
        location: where it is.
        fetched: stamp of the original, if its bytes follow; else the process opens it.
        keep_jpeg: whether it may be handed back as a JPEG.
    """

    location: Location
    fetched: Stamp | None = None
    keep_jpeg: bool = False


@dataclass(frozen=True)
class Pixels:
    """One item of an original; its numbers follow as raw bytes.

    Attributes:
        stamp: size and time of the original.
        sha256: hex digest of its bytes.
        shape: of the numbers, units first.
        dtype: `uint8` before normalising, or `float32`.
        clip: of a video, what its frames are.
        last: whether the original gives no more items.
        seconds: time spent on it.
    """

    stamp: Stamp
    sha256: str
    shape: tuple[int, ...]
    dtype: str
    clip: Clip | None
    last: bool
    seconds: float


@dataclass(frozen=True)
class Jpeg:
    """A plain JPEG that the process has only looked at; its bytes follow."""

    stamp: Stamp
    sha256: str
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Why an original, or what is left of it, is skipped."""

    reason: str
    message: str
    seconds: float


@dataclass(frozen=True)
class Progress:
    """A sign of life: a step of a long job is done."""


Answer = Pixels | Jpeg | Failure | Progress
