"""Clips whose frames say which they are, and what a plain reading of a whole file gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

NUM_BITS = 16


def picture_of(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Pixels that show `number` in bits, columns black or white, under a white stripe."""
    bits = [255 * (number >> bit & 1) for bit in range(NUM_BITS)]
    row = np.repeat(np.array(bits, np.uint8), size[0] // NUM_BITS)
    pixels = np.tile(row[None, :, None], (size[1], 1, 3))
    pixels[: size[1] // 3] = 255
    return pixels


def scene_of(number: int, size: tuple[int, int] = (64, 48), *, film: int = 0) -> np.ndarray:
    """Pixels with patches of colour, others for each number and film."""
    patches = np.random.default_rng([film, number]).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize(size, Image.Resampling.NEAREST))


def write_clip(
    path: Path,
    num_frames: int,
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    format_: str | None = None,
    audio: bool = False,
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 10),
    gop: int = 12,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    paint: Callable[[int, tuple[int, int]], np.ndarray] = picture_of,
) -> Path:
    """A clip of 10 frames a second, or of frames at `times` (in units of `time_base`)."""
    with av.open(str(path), "w", format=format_, options=muxer or {}) as container:
        if audio:
            sound = container.add_stream("aac", rate=44_100)
        else:
            stream = container.add_stream(codec, rate=Fraction(10))
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.gop_size = gop
            stream.options = options or {"qscale": "2"}
            if times is not None:
                stream.codec_context.time_base = time_base
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(paint(number, size), format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[number], time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if audio:
            samples = np.zeros((1, 4096), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
            frame.sample_rate = 44_100
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def centre_numbers(num_available: int, num_frames: int = 16) -> list[int]:
    """Which frames of an even clip are shown at the centres."""
    return [(2 * i + 1) * num_available // (2 * num_frames) for i in range(num_frames)]


def numbers(frames: Sequence[Image.Image]) -> list[int]:
    """What each frame shows below its stripe, read in the middle of the columns."""
    half = 2 * NUM_BITS
    rows = [
        np.asarray(img)[-6].mean(-1)[img.width // half :: img.width // NUM_BITS] for img in frames
    ]
    return [sum(1 << bit for bit in range(NUM_BITS) if row[bit] > 128) for row in rows]


def read_plainly(path: Path) -> list[tuple[Fraction, Any]]:
    """Every frame of the first video track and its time in seconds, by decoding all of it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(frame.pts * stream.time_base, frame) for frame in container.decode(stream)]


def shown_plainly(path: Path, centres_s: Sequence[Fraction]) -> list[int]:
    """Numbers of the frames that are shown at these times from the first frame on."""
    frames = read_plainly(path)
    begin = frames[0][0]
    shown = []
    for centre in centres_s:
        frame = [frame for time, frame in frames if time - begin <= centre][-1]
        shown.append(Image.fromarray(frame.to_ndarray(format="rgb24")))
    return numbers(shown)
