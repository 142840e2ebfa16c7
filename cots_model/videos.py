"""From a video to its frames and one vector: the one place where videos are decoded.

A video is 16 frames and its vector the mean of theirs (supplement, text-to-video retrieval). Chosen
here: the frames that are shown at the centres of 16 equal segments of its time, and that unit
vectors are averaged and normalised again.

Shape letters: F frames of all videos, N videos, E joint width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from cots_model.errors import InputError
from cots_model.images import MAX_PIXELS
from cots_model.video_frames import FrameReader
from cots_model.video_track import VideoError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "NUM_FRAMES",
    "VIDEO_SUFFIXES",
    "VideoClip",
    "VideoError",
    "decode_frame",
    "decode_video",
    "iter_clips",
    "mean_frames",
    "pool_frames",
]

NUM_FRAMES = 16
VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".3gp"]
)

_MICRO = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class VideoClip:
    """The frames that stand for a video, or for one segment of it.

    Times are seconds from the first frame of the video, to the microsecond.

    Attributes:
        frames: upright RGB, in order of time; where a frame is shown for long, or there are few,
            the same one again.
        times_s: when each of them is shown first.
        start_s: where the segment begins; `None` for a whole video.
        end_s: where it ends.
        duration_s: length of the whole video.
    """

    frames: list[Image.Image]
    times_s: tuple[float, ...]
    start_s: float | None
    end_s: float | None
    duration_s: float


def iter_clips(
    source: BinaryIO | Path,
    *,
    num_frames: int = NUM_FRAMES,
    segment_s: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[VideoClip]:
    """A video as one clip, or as one clip for each segment, in order.

    A clip has the frames that are shown at the centres of `num_frames` equal parts of its time.
    Only the stretches that are needed are decoded. A damaged video gives what there is of it.

    Args:
        source: an open file that can seek, or a path.
        num_frames: how many frames a clip has.
        segment_s: cut the video into segments of this length. A rest of less than half of it goes
            to the segment before, a segment in which no new frame is shown is left out, and a video
            of one segment is whole.
        max_pixels: largest width x height of a frame, by the header.

    Raises:
        VideoError: with a `reason`, for anything but a video with at least one good frame.
        CotsError: if PyAV is not installed.
    """
    if num_frames < 1 or (segment_s is not None and not segment_s > 0):
        raise InputError(f"{num_frames} frames of {segment_s} s cannot be; both must be above 0")
    with _opened(source) as file, FrameReader(file, max_pixels=max_pixels) as reader:
        timeline = _Timeline(reader, segment_s)
        number = 0
        while number < timeline.num_segments:
            frames = _shown(reader, timeline.centres(number, num_frames))
            if number == 0 or timeline.number_at(frames[-1].ticks) == number:
                yield timeline.clip(number, frames)
            if reader.next_ticks is None:
                break
            number = max(number + 1, timeline.number_at(reader.next_ticks))


def decode_video(
    source: BinaryIO | Path, *, num_frames: int = NUM_FRAMES, max_pixels: int = MAX_PIXELS
) -> list[Image.Image]:
    """The frames of the whole video, each once: a clip of fewer frames gives all that it has.

    Args:
        source: an open file that can seek, or a path.
        num_frames: how many equal parts of its time give a frame.
        max_pixels: largest width x height of a frame, by the header.

    Raises:
        VideoError: as `iter_clips`.
        CotsError: if PyAV is not installed.
    """
    [clip] = iter_clips(source, num_frames=num_frames, max_pixels=max_pixels)
    return list(dict(zip(clip.times_s, clip.frames, strict=True)).values())


def decode_frame(
    source: BinaryIO | Path,
    time_s: float,
    *,
    max_pixels: int = MAX_PIXELS,
    until_s: float | None = None,
) -> Image.Image:
    """The upright RGB frame that is shown at a time; beyond the end the last one.

    Args:
        source: an open file that can seek, or a path.
        time_s: from the first frame on, as `VideoClip.times_s` counts.
        max_pixels: largest width x height of a frame, by the header.
        until_s: give up then, on the clock of `time.monotonic`.

    Raises:
        VideoError: as `iter_clips`, and `timeout`.
        CotsError: if PyAV is not installed.
    """
    with (
        _opened(source) as file,
        FrameReader(file, max_pixels=max_pixels, with_end=False, until_s=until_s) as reader,
    ):
        at = reader.start + (Fraction(time_s) + _MICRO) // reader.time_base
        return reader.shown_at(max(at, reader.start)).to_image()


def pool_frames(frame_FE: Tensor, num_frames_N: Sequence[int]) -> Tensor:
    """One unit vector `[N,E]` per video: the mean of its frames' unit vectors, normalised.

    Args:
        frame_FE: unit vectors, float32, the frames of a video beside each other.
        num_frames_N: how many frames each video has, at least 1; the sum is F.
    """
    import torch

    return torch.nn.functional.normalize(mean_frames(frame_FE, num_frames_N), dim=1)


def mean_frames(frame_FD: Tensor, num_frames_N: Sequence[int]) -> Tensor:
    """The mean `[N,D]` of each video's frames, which lie beside each other in `[F,D]`."""
    import torch

    if len(set(num_frames_N)) == 1:
        videos_NFD = frame_FD.reshape(len(num_frames_N), num_frames_N[0], frame_FD.shape[1])
        return videos_NFD.mean(dim=1)
    return torch.stack([part_FD.mean(dim=0) for part_FD in frame_FD.split(list(num_frames_N))])


@dataclass(frozen=True)
class _Shown:
    """A frame made into a picture at once: decoders hold far more than that."""

    ticks: int
    img: Image.Image


class _Timeline:
    """Where the segments of a video lie; lengths and bounds are ticks from the first frame."""

    def __init__(self, reader: FrameReader, segment_s: float | None) -> None:
        assert reader.end is not None, "the reader was asked for the end"
        self._start = reader.start
        self._time_base = reader.time_base
        self._length = Fraction(reader.end - reader.start)
        self._step = self._length
        if segment_s is not None:
            self._step = Fraction(segment_s).limit_denominator(1_000_000) / reader.time_base
        self.num_segments = max(1, int((self._length + self._step / 2) / self._step))

    def begin(self, number: int) -> Fraction:
        """Where a segment begins, and the one before it ends."""
        return self._length if number == self.num_segments else number * self._step

    def centres(self, number: int, num_parts: int) -> list[int]:
        """The middles of equal parts of a segment, in ticks of the file."""
        begin, end = self.begin(number), self.begin(number + 1)
        halves = (end - begin) / (2 * num_parts)
        return [self._start + int(begin + (2 * i + 1) * halves) for i in range(num_parts)]

    def number_at(self, ticks: int) -> int:
        """In which segment a time of the file lies."""
        return min(int((ticks - self._start) / self._step), self.num_segments - 1)

    def clip(self, number: int, frames: Sequence[_Shown]) -> VideoClip:
        """What `iter_clips` gives for the frames of a segment."""
        whole = self.num_segments == 1
        return VideoClip(
            frames=[frame.img for frame in frames],
            times_s=tuple(self._seconds(frame.ticks - self._start) for frame in frames),
            start_s=None if whole else self._seconds(self.begin(number)),
            end_s=None if whole else self._seconds(self.begin(number + 1)),
            duration_s=self._seconds(self._length),
        )

    def _seconds(self, ticks: Fraction | int) -> float:
        return round(float(ticks * self._time_base), 6)


def _shown(reader: FrameReader, centres: Sequence[int]) -> list[_Shown]:
    found: list[_Shown] = []
    for ticks in centres:
        frame = reader.shown_at(ticks)
        again = bool(found) and found[-1].ticks == frame.ticks
        found.append(found[-1] if again else _Shown(frame.ticks, frame.to_image()))
    return found


@contextmanager
def _opened(source: BinaryIO | Path) -> Iterator[BinaryIO]:
    """The file; whatever cannot be read of it, also later, is told as such."""
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                yield file
        else:
            yield source
    except OSError as err:
        name = source.name if isinstance(source, Path) else "the video"
        raise VideoError("unreadable", f"{name} cannot be read ({err.strerror or err})") from err
