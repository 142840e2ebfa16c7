"""One video track of an open file: its packets, frames and length. PyAV is used here alone.

Times are ticks, the integers of the track's own time base, so that nothing is rounded.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, BinaryIO, Self

from PIL import Image

from cots_model.errors import CotsError, InputError

MAX_SIDE = 1920
"""Larger frames are made smaller when they are converted: sixteen of 8K would take 1.5 GB."""

# Playlists (hls, concat, dash) are left out: they would make the decoder open other files and urls.
# mp3 is there to be told apart from damaged files: it has at most a cover.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,mp3"

_UNSEARCHABLE = frozenset({"mpeg", "mpegvideo"})
"""Containers with few times in them: behind a jump FFmpeg guesses them, up to seconds wrong."""

_BEFORE_END_S = 2
_PADDING = 1_000_000
_USUAL_RATE = Fraction(25)
_RATES = (Fraction(1, 10), Fraction(1000))


class VideoError(InputError):
    """A video that cannot be used.

    Attributes:
        reason: short stable code: `unreadable`, `damaged`, `no_video`, `too_many_pixels` or, where
            a limit was set, `timeout`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    Attributes:
        ticks: when it is shown first.
        picture: PyAV's frame.
    """

    ticks: int
    picture: Any

    def to_image(self) -> Image.Image:
        """Upright RGB, at most `MAX_SIDE` on its longer side.

        Raises:
            VideoError: if its pixels are of a kind that cannot be converted.
        """
        width, height = self.picture.width, self.picture.height
        scale = min(1.0, MAX_SIDE / max(width, height))
        size = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
        try:
            img = Image.fromarray(self.picture.to_ndarray(format="rgb24", **size))
        except (OSError, ValueError) as err:
            raise damaged(f"a frame cannot be turned into RGB: {err}") from err
        rotation = self.picture.rotation
        return img.rotate(rotation, expand=True) if rotation else img


class Track:
    """The best video track of a file, freshly opened at its start; a context manager.

    Attributes:
        time_base: seconds of one tick.
        searchable: whether times can be relied on behind a jump.
        step: ticks between two frames, where nothing tells better.
        timed: whether all frames so far had times of their own.
    """

    def __init__(self, file: BinaryIO, *, max_pixels: int, until_s: float | None = None) -> None:
        """Open a file that can seek; nothing is decoded yet.

        Args:
            file: stays open, and in use, until `close`.
            max_pixels: largest width x height of a frame.
            until_s: give up then, on the clock of `time.monotonic`, in whatever is called here.

        Raises:
            VideoError: if it is no video, or its frames are larger than `max_pixels`; `timeout`.
            CotsError: if PyAV is not installed.
        """
        self._av = _load_av()
        self._max_pixels = max_pixels
        self._until_s = until_s
        file.seek(0)
        source = file if until_s is None else _Timed(file, until_s)
        try:
            self._container = self._av.open(
                source, options={"format_whitelist": _CONTAINERS}, metadata_errors="replace"
            )
        except self._av.FFmpegError as err:
            raise damaged(f"it is no video in a known container: {err.strerror}") from err
        try:
            self._stream = self._choose()
        except BaseException:
            self._container.close()
            raise
        self.time_base: Fraction = self._stream.time_base
        self.searchable = self._container.format.name not in _UNSEARCHABLE
        self.step = max(1, round(1 / _rate(self._stream) / self.time_base))
        self.timed = True

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
        self._container.close()

    def ticks_in(self, seconds: float) -> int:
        """How many ticks make so many seconds."""
        return round(Fraction(seconds) / self.time_base)

    def find_end(self, *, from_header: bool) -> int | None:
        """Ticks at which the last frame ends, from the packets that are there; none is decoded.

        Args:
            from_header: begin where the header says that the end is, instead of here.

        Returns:
            `None` if there is no packet.
        """
        if from_header:
            claimed = self._claimed_end() if self.searchable else None
            if claimed is None or not self.seek(claimed - self.ticks_in(_BEFORE_END_S)):
                return None
        end: int | None = None
        at: int | None = None
        for packet in self._packets():
            if at is None and from_header and packet.pts is None and packet.dts is None:
                return None  # somewhere in the file, but nobody knows where
            if not packet.is_discard:
                at = _first(packet.pts, packet.dts, 0 if at is None else at + self.step) or 0
                end = max(at if end is None else end, at + (packet.duration or self.step))
        return end

    def seek(self, ticks: int) -> bool:
        """Go to the keyframe before `ticks`, as far as the container knows; whether it could."""
        try:
            self._container.seek(ticks, stream=self._stream, backward=True)
        except (self._av.FFmpegError, OverflowError):
            return False
        return True

    def frames(self, *, after_seek: bool = False) -> Iterator[Frame]:
        """Frames from here on, in order of time; what cannot be decoded is passed over.

        Args:
            after_seek: begin at the next keyframe.
        """
        key: int | None = None
        last: int | None = None
        for packet in self._packets():
            if after_seek and key is None:
                if not packet.is_keyframe:
                    continue
                key = _first(packet.pts, packet.dts, 0)
            for picture in self._decode(packet):
                last = self._ticks_of(picture, last)
                if key is None or last >= key:  # those before it may lack what they refer to
                    yield Frame(last, picture)
        for picture in self._decode(None):
            last = self._ticks_of(picture, last)
            yield Frame(last, picture)

    def _choose(self) -> Any:
        streams = [s for s in self._container.streams.video if not _is_cover(s)]
        if not (self._container.streams.video or self._container.streams.audio):
            raise damaged("its header is cut off, or names no track")
        if not streams:
            raise VideoError("no_video", "the file has no video track; take another")
        known = [stream for stream in streams if stream.codec_context is not None]
        if not known:
            raise damaged("its codec is not known")
        best = self._container.streams.best("video")
        stream = best if best in known else known[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > self._max_pixels:
            raise VideoError(
                "too_many_pixels",
                f"a frame is {width} x {height}; at most {self._max_pixels:,} pixels are accepted; "
                "make it smaller",
            )
        if not stream.time_base:
            raise damaged("its times have no unit")
        stream.codec_context.thread_count = 1  # whoever calls has processes of its own
        # Frames may still grow. FFmpeg counts padding too, so its limit is wider than `_decode`'s.
        stream.codec_context.options = {"max_pixels": str(2 * self._max_pixels + _PADDING)}
        return stream

    def _claimed_end(self) -> int | None:
        if self._stream.duration:
            return int((self._stream.start_time or 0) + self._stream.duration)
        if self._container.duration:
            micros = (self._container.start_time or 0) + self._container.duration
            return round(Fraction(micros, 1_000_000) / self.time_base)
        return None

    def _packets(self) -> Iterator[Any]:
        """Packets that hold something, up to the end or to where the file is broken."""
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    check_time(self._until_s)  # small packets can take long: many fit one read
                    if packet.size:
                        yield packet
            except self._av.FFmpegError:
                return
            except IndexError:  # PyAV met a track that was not announced, and is behind it now
                continue
            return

    def _decode(self, packet: Any) -> list[Any]:
        try:
            pictures = self._stream.codec_context.decode(packet)
        except self._av.FFmpegError:
            return []
        return [pic for pic in pictures if pic.width * pic.height <= self._max_pixels]

    def _ticks_of(self, picture: Any, last: int | None) -> int:
        """Its time; one that has none, or an impossible one, follows the last by a step."""
        self.timed = self.timed and picture.pts is not None
        ticks = _first(picture.pts, picture.dts)
        if last is None:
            return ticks or 0
        return last + self.step if ticks is None or ticks <= last else ticks


class _Timed:
    """A file that fails once its time is over; PyAV passes on what its reads raise."""

    def __init__(self, file: BinaryIO, until_s: float) -> None:
        self._until_s = until_s
        self._read = file.read
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        """As the file's."""
        check_time(self._until_s)
        return self._read(size)


def check_time(until_s: float | None) -> None:
    """Raise a VideoError, `timeout`, if a time of `time.monotonic` is over."""
    if until_s is not None and time.monotonic() > until_s:
        raise VideoError("timeout", "the frame takes too long to get at; save it as mp4")


def damaged(what: str) -> VideoError:
    """The error for a file that nothing can be made of."""
    return VideoError("damaged", f"the video cannot be decoded ({what}); save it again")


def _load_av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as err:
        raise CotsError(
            "reading videos needs PyAV, which cannot be imported here; pip install av"
        ) from err


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in str(getattr(stream.disposition, "name", ""))


def _rate(stream: Any) -> Fraction:
    """Frames per second, if the header says something that can be."""
    rates = (stream.average_rate, stream.guessed_rate)
    return next((r for r in rates if r and _RATES[0] <= r <= _RATES[1]), _USUAL_RATE)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
