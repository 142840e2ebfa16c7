"""The frames of a video by time, decoding no more of it than is needed."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import BinaryIO, Self

from cots_model.video_track import Frame, Track, damaged

_LEAST_JUMP_S = 1.0
_BACK_S = (0.0, 1.0, 3.0, 10.0, 30.0)


class FrameReader:
    """Frames of a file's best video track, asked for in order of time; a context manager.

    Between two frames that are far apart it jumps to the keyframe before the second. Where the file
    has few keyframes or cannot be searched it decodes on instead, and no stretch twice for long.

    Attributes:
        time_base: seconds of one tick.
        start: ticks of the first frame.
        end: ticks at which the last frame ends; `None` if it was not asked for.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        max_pixels: int,
        with_end: bool = True,
        until_s: float | None = None,
    ) -> None:
        """Open a file that can seek and decode its first frame.

        Args:
            file: stays open, and in use, until `close`.
            max_pixels: largest width x height of a frame.
            with_end: find the end too.
            until_s: give up then, on the clock of `time.monotonic`.

        Raises:
            VideoError: if there is no video track, its frames are too large, or none is decodable.
            CotsError: if PyAV is not installed.
        """
        self._file = file
        self._max_pixels = max_pixels
        self._until_s = until_s
        end = _find_end(file, max_pixels, until_s) if with_end else None
        self._back: tuple[float, ...] = _BACK_S
        self._track, self._frames, self._shown = self._begin()
        self._ahead = next(self._frames, None)
        self._can_jump = self._track.searchable
        self.time_base: Fraction = self._track.time_base
        self.start = self._shown.ticks
        self.end = None if end is None else max(end, self.start + 1)
        self._least_jump = self._track.ticks_in(_LEAST_JUMP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the container, but not the file."""
        self._track.close()

    @property
    def next_ticks(self) -> int | None:
        """When the frame after the last one asked for is shown; `None` if that was the last."""
        return None if self._ahead is None else self._ahead.ticks

    def shown_at(self, ticks: int) -> Frame:
        """The last frame that is shown at or before `ticks`, or the first of all.

        Args:
            ticks: not less than those asked for before.

        Raises:
            VideoError: `timeout`, if it takes too long.
        """
        if self._ahead is not None and ticks - self._ahead.ticks > self._least_jump:
            self._jump(ticks)
        while self._ahead is not None and self._ahead.ticks <= ticks:
            self._shown, self._ahead = self._ahead, next(self._frames, None)
        return self._shown

    def _jump(self, ticks: int) -> None:
        """Go on from the keyframe before `ticks`, or where we are if that cannot be found."""
        if not (self._can_jump and self._track.timed):
            return
        while self._back:  # some containers land behind the place that was named
            first = self._land(max(ticks - self._track.ticks_in(self._back[0]), self.start))
            if first is None:
                break
            if first.ticks <= ticks:
                # the next keyframe may be as far from what is wanted: less than that gains nothing
                self._least_jump = max(self._least_jump, ticks - first.ticks)
                return
            self._back = self._back[1:]
        self._can_jump = False
        self._track.close()
        self._track, self._frames, self._shown = self._begin()
        self._ahead = next(self._frames, None)

    def _land(self, ticks: int) -> Frame | None:
        """The frame that decoding goes on from after a jump."""
        if not self._track.seek(ticks):
            return None
        self._frames = self._track.frames(after_seek=True)
        first = next(self._frames, None)
        if first is not None:
            self._shown, self._ahead = first, next(self._frames, None)
        return first

    def _begin(self) -> tuple[Track, Iterator[Frame], Frame]:
        """The track from its start on, behind its first frame."""
        track = Track(self._file, max_pixels=self._max_pixels, until_s=self._until_s)
        try:
            frames = track.frames()
            first = next(frames, None)
            if first is None:
                raise damaged("not one frame is good")
        except BaseException:
            track.close()
            raise
        return track, frames, first


def _find_end(file: BinaryIO, max_pixels: int, until_s: float | None) -> int:
    """What the header says is where to look first; a file may be shorter, or say nothing."""
    for from_header in (True, False):
        with Track(file, max_pixels=max_pixels, until_s=until_s) as track:
            end = track.find_end(from_header=from_header)
        if end is not None:
            return end
    raise damaged("it has no frames")
