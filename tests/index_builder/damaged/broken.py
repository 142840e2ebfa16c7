"""Pictures cut off, and pictures with flipped bits."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.index_builder.damaged.case import Case, opened, saved, scene

UNREADABLE = frozenset({"truncated", "damaged", "unsupported_format"})

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def originals() -> dict[str, bytes]:
    """Good pictures in all formats, by a name that ends as a file's."""
    img = Image.fromarray(scene(1))
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1)))
    clear = img.copy()
    clear.putalpha(alpha)
    frames = [Image.fromarray(scene(n)) for n in range(2, 5)]
    more = {"save_all": True, "append_images": frames}
    return {
        "baseline.jpg": saved(img, "JPEG", quality=90),
        "progressive.jpg": saved(img, "JPEG", quality=90, progressive=True),
        "grey.jpg": saved(img.convert("L"), "JPEG"),
        "rgb.png": saved(img, "PNG"),
        "rgba.png": saved(clear, "PNG"),
        "palette.png": saved(img.quantize(64), "PNG"),
        "animated.png": saved(img, "PNG", **more),
        "lossy.webp": saved(img, "WEBP", quality=90),
        "lossless.webp": saved(img, "WEBP", lossless=True),
        "animated.webp": saved(img, "WEBP", **more),
        "still.gif": saved(img, "GIF"),
        "animated.gif": saved(img, "GIF", **more),
        "plain.bmp": saved(img, "BMP"),
        "plain.tif": saved(img, "TIFF"),
        "lzw.tif": saved(img, "TIFF", compression="tiff_lzw"),
        "deflate.tif": saved(img, "TIFF", compression="tiff_adobe_deflate"),
        "pages.tif": saved(img, "TIFF", compression="tiff_lzw", **more),
    }


def cases() -> Iterator[Case]:
    """All of them cut at many points, and all of them flipped many times."""
    for name, data in originals().items():
        for parts in (1, 2, 4, 8, 16, 24, 28, 30, 31):
            yield _cut(name, data, len(data) * parts // 32)
        for missing in (1, 2, 12):
            yield _cut(name, data, len(data) - missing)
        for seed in range(14):
            yield _flipped(name, data, seed)


def _cut(name: str, data: bytes, length: int) -> Case:
    """May be indexed only as the whole picture: what was cut off was of no weight."""
    stem, suffix = name.split(".")
    return Case(f"cut-{stem}-{length}.{suffix}", data[:length], UNREADABLE, opened(data))


def _flipped(name: str, data: bytes, seed: int) -> Case:
    stem, suffix = name.split(".")
    rng = np.random.default_rng([seed, len(data)])
    damaged = bytearray(data)
    start = 0 if seed % 3 == 0 else min(len(data) // 3, 700)
    for place in rng.integers(start, len(data), 1 + seed % 4):
        damaged[place] ^= 1 << int(rng.integers(8))
    reasons = UNREADABLE | {"too_many_pixels", "out_of_memory"}
    name = f"flip-{stem}-{seed}.{suffix}"
    return Case(name, bytes(damaged), reasons, opened(data), judged=True, tolerance=4.0)
