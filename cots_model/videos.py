"""From a clip to its frames and one vector: the one place where videos are decoded.

A video is 16 frames and its vector the mean of theirs (supplement, text-to-video retrieval); which
frames, and that unit vectors are averaged and normalised again, is chosen. PyAV is needed:
`pip install 'cots-retrieval[video]'`.

Shape letters: F frames of all videos, N videos, E joint width.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from cots_model.errors import CotsError, InputError
from cots_model.images import MAX_PIXELS

if TYPE_CHECKING:
    from torch import Tensor

NUM_FRAMES = 16
VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".3gp"]
)

# Playlists (hls, concat, dash) are left out: they would make the decoder open other files and urls.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv"


class VideoError(InputError):
    """A video that cannot be used.

    Attributes:
        reason: short stable code: `unreadable`, `damaged`, `no_video` or `too_many_pixels`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


def decode_video(
    source: BinaryIO | Path, *, num_frames: int = NUM_FRAMES, max_pixels: int = MAX_PIXELS
) -> list[Image.Image]:
    """The upright RGB frames at the centres of `num_frames` equal segments of a clip.

    A clip with fewer frames gives all that it has. Packets that cannot be decoded are passed over.

    Args:
        source: an open file that can seek, or a path.
        num_frames: how many segments.
        max_pixels: largest width x height of a frame.

    Raises:
        VideoError: with a `reason`, for anything but a video with at least one good frame.
        CotsError: if PyAV is not installed.
    """
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                return decode_video(file, num_frames=num_frames, max_pixels=max_pixels)
        except OSError as err:
            raise VideoError(
                "unreadable", f"{source.name} cannot be read ({err.strerror})"
            ) from err
    av = _load_av()
    try:
        wanted = frame_indices(_count_packets(av, source), num_frames)
        frames, num_decoded = _frames_at(av, source, wanted, max_pixels)
        if len(frames) < len(wanted):  # the container promised more frames than there are
            wanted = frame_indices(num_decoded, num_frames)
            frames, _ = _frames_at(av, source, wanted, max_pixels)
    except (av.FFmpegError, OSError, ValueError, MemoryError) as err:
        raise VideoError("damaged", f"the video cannot be decoded ({err}); save it again") from err
    if not frames:
        raise VideoError("damaged", "the video has no frame that can be decoded; save it again")
    return frames


def frame_indices(num_available: int, num_frames: int) -> list[int]:
    """Which frames lie at the centres of `num_frames` equal segments; all, if there are fewer."""
    if num_available <= num_frames:
        return list(range(num_available))
    return [(2 * i + 1) * num_available // (2 * num_frames) for i in range(num_frames)]


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


def _load_av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as err:
        raise CotsError(
            "reading videos needs PyAV, which is not installed; pip install 'cots-retrieval[video]'"
        ) from err


def _open(av: Any, file: BinaryIO) -> Any:
    file.seek(0)
    return av.open(file, options={"format_whitelist": _CONTAINERS})


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise VideoError("no_video", "the file has no video track; take another")
    return container.streams.video[0]


def _count_packets(av: Any, file: BinaryIO) -> int:
    """Frames as the container tells them, without decoding any."""
    with _open(av, file) as container:
        return sum(1 for packet in container.demux(_stream(container)) if packet.size)


def _frames_at(
    av: Any, file: BinaryIO, wanted: Sequence[int], max_pixels: int
) -> tuple[list[Image.Image], int]:
    """The frames of these numbers, and how many were decoded up to the last of them."""
    found: list[Image.Image] = []
    number = 0
    with _open(av, file) as container:
        for frame in _decode(av, container):
            if len(found) < len(wanted) and number == wanted[len(found)]:
                found.append(_to_rgb(frame, max_pixels))
            number += 1
            if len(found) == len(wanted):
                break
    return found, number


def _decode(av: Any, container: Any) -> Iterator[Any]:
    for packet in container.demux(_stream(container)):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            continue


def _to_rgb(frame: Any, max_pixels: int) -> Image.Image:
    if frame.width * frame.height > max_pixels:
        raise VideoError(
            "too_many_pixels",
            f"a frame is {frame.width} x {frame.height}; at most {max_pixels:,} pixels are "
            "accepted; make it smaller",
        )
    img = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return img.rotate(frame.rotation, expand=True) if frame.rotation else img
