"""One file, and what may be made of it."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A file and the truth about it.

    Attributes:
        name: file name.
        data: its bytes.
        reasons: it may be skipped for any of these; none: it must be indexed.
        shows: what it shows, `[H,W,3]`, if it may be indexed.
        judged: whether it may also be indexed as what another decoder makes of it.
        tolerance: largest mean difference of pixels.
    """

    name: str
    data: bytes
    reasons: frozenset[str] = frozenset()
    shows: Pixels | None = None
    judged: bool = False
    tolerance: float = 1.0


def scene(seed: int = 0, width: int = 96, height: int = 64) -> Pixels:
    """A smooth picture with some shapes, another for each seed: `[H,W,3]`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    slopes = rng.uniform(-1, 1, (3, 2))
    phase = rng.uniform(0, 255, 3)
    planes = [phase[c] + slopes[c, 0] * x + slopes[c, 1] * y for c in range(3)]
    img = np.stack(planes, axis=2)
    for _ in range(4):
        cx, cy, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(5, 25)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        img[inside] = img[inside] * 0.4 + rng.uniform(0, 255, 3) * 0.6
    return img.clip(0, 255).astype(np.uint8)


def saved(img: Image.Image, kind: str, **options: object) -> bytes:
    """A picture in a format."""
    buffer = io.BytesIO()
    img.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Pixels:
    """What an undamaged picture of ours shows, to compare damaged ones with."""
    with Image.open(io.BytesIO(data)) as img:
        white = Image.new("RGBA", img.size, "white")
        return np.asarray(Image.alpha_composite(white, img.convert("RGBA")).convert("RGB"))


def judge(data: bytes) -> Pixels | None:
    """What other decoders show of a picture, laid over white; `None` if they cannot.

    JPEG is read by torchvision, as decoders differ in what they make of damaged ones and libjpeg is
    the measure; all else by FFmpeg.
    """
    return _judge_jpeg(data) if data[:2] == b"\xff\xd8" else _judge_other(data)


def _judge_jpeg(data: bytes) -> Pixels | None:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is said to move to another package
            img_CHW = decode_jpeg(encoded, ImageReadMode.RGB)
    except RuntimeError:
        return None
    return img_CHW.permute(1, 2, 0).numpy()


def _judge_other(data: bytes) -> Pixels | None:
    import av

    try:
        with av.open(io.BytesIO(_first_of_webp(data))) as container:
            frame = next(container.decode(video=0))
            rgba = frame.to_ndarray(format="rgba").astype(np.float64)
    except (av.FFmpegError, StopIteration, IndexError, ValueError, MemoryError):
        return None
    alpha = rgba[..., 3:] / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def _first_of_webp(data: bytes) -> bytes:
    """An animated WebP's first frame as a file of its own: FFmpeg reads no others."""
    place = data.find(b"ANMF") if data[8:12] == b"WEBP" else -1
    if place < 0:
        return data
    length = int.from_bytes(data[place + 4 : place + 8], "little")
    frame = data[place + 8 + 16 : place + 8 + length]
    return b"RIFF" + (len(frame) + 4).to_bytes(4, "little") + b"WEBP" + frame
