"""Small files that ask for much: memory, time, or patience."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.index_builder.damaged.case import Case, saved, scene

_TOO_MANY = frozenset({"too_many_pixels"})
_LYING = frozenset({"too_many_pixels", "truncated", "damaged"})
_HUGE = frozenset({"damaged", "truncated", "out_of_memory", "decoder_crashed", "decoder_timeout"})


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _pixel_bombs()
    yield from _compression_bombs()
    yield from _time_bombs()
    yield from _thin()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, rows: bytes, *extra: bytes, depth: int = 8, kind: int = 0
) -> bytes:
    """A PNG of any claims: `rows` are compressed as they are."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows, 9)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def _pixel_bombs() -> Iterator[Case]:
    for width, height in ((8000, 7000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)):
        yield Case(f"pixels-{width}.png", png(width, height, bytes(2**20)), _LYING)
    true = saved(Image.new("1", (10_000, 9_000)), "PNG")
    yield Case("pixels-one-bit.png", true, _TOO_MANY)
    yield Case(
        "pixels.tif",
        saved(Image.new("1", (20_000, 9_000)), "TIFF", compression="group4"),
        _TOO_MANY,
    )
    yield Case("pixels.gif", saved(Image.new("P", (10_000, 9_000)), "GIF"), _TOO_MANY)
    yield Case(
        "pixels.webp",
        saved(Image.new("RGB", (16_000, 4_000)), "WEBP", lossless=True, method=0),
        _TOO_MANY,
    )
    small = saved(Image.fromarray(scene(3)), "JPEG")
    for side in (9_000, 65_500):
        place = small.index(b"\xff\xc0") + 5
        lying = small[:place] + struct.pack(">HH", side, side) + small[place + 4 :]
        yield Case(f"pixels-{side}.jpg", lying, _LYING)
    bmp = bytearray(saved(Image.fromarray(scene(3)), "BMP"))
    for side in (40_000, 2**31 - 1, -(2**31)):
        bmp[18:26] = struct.pack("<ii", abs(side) % 2**31, side)
        yield Case(f"pixels-{side}.bmp", bytes(bmp), _LYING | {"unsupported_format"})
    yield Case("pixels-screen.gif", _gif(screen=(65_535, 65_535)), _LYING)
    yield Case("pixels-frame.gif", _gif(frame=(65_535, 65_535)), _LYING)


def _gif(
    screen: tuple[int, int] = (8, 8), frame: tuple[int, int] = (8, 8), repeat: int = 1
) -> bytes:
    head = b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\x00\x00" + b"\x00\x00\x00\xff\xff\xff"
    loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
    image = b"\x2c" + struct.pack("<HHHH", 0, 0, *frame) + b"\x00"
    data = b"\x02\x02\x84\x51\x00"
    return head + loop + (image + data) * repeat + b";"


def _compression_bombs() -> Iterator[Case]:
    much = bytes(300 * 2**20)
    packed = zlib.compress(much, 9)
    rows = np.zeros((64, 97), np.uint8)
    rows[:, 1:] = scene(4)[..., 0]
    grey = np.repeat(rows[:, 1:, None], 3, axis=2)
    yield Case("data-behind.png", png(96, 64, rows.tobytes() + much), _HUGE, grey)
    texts = {
        "ztxt": chunk(b"zTXt", b"bomb\x00\x00" + packed),
        "itxt": chunk(b"iTXt", b"bomb\x00\x01\x00\x00\x00" + packed),
        "iccp": chunk(b"iCCP", b"bomb\x00\x00" + packed),
    }
    for name, extra in texts.items():
        yield Case(f"bomb-{name}.png", png(96, 64, rows.tobytes(), extra), _HUGE, grey)
    many = b"".join(chunk(b"tEXt", b"k%d\x00" % n + b"x" * 1000) for n in range(5000))
    yield Case("many-texts.png", png(96, 64, rows.tobytes(), many), _HUGE, grey)
    yield Case(
        "endless-text.png",
        png(96, 64, rows.tobytes(), chunk(b"tEXt", b"k\x00" + bytes(2**24))),
        _HUGE,
        grey,
    )
    yield Case("bomb-strip.tif", _tiff_strip(packed), _HUGE)
    flat = Image.new("RGBA", (7_000, 7_000), (10, 200, 30, 0))
    yield Case(
        "just-allowed.png",
        saved(flat, "PNG", compress_level=1),
        shows=np.full((8, 8, 3), 255, np.uint8),
    )
    del much


def _tiff_strip(packed: bytes) -> bytes:
    """A TIFF of 96 x 64 whose one strip holds far more, and says so."""
    tags = [
        (256, 4, 96), (257, 4, 64), (258, 3, 8), (259, 3, 8), (262, 3, 1), (273, 4, 200),
        (277, 3, 1), (278, 4, 2**31), (279, 4, len(packed)),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\x00" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)
    return head.ljust(200, b"\x00") + packed


def _time_bombs() -> Iterator[Case]:
    data = saved(Image.new("L", (4000, 4000), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scans = data[:-2] + data[last:-2] * 3000 + data[-2:]
    grey = np.full((8, 8, 3), 90, np.uint8)
    yield Case("many-scans.jpg", scans, _HUGE, grey)
    frames = [Image.new("P", (16, 16), n % 250) for n in range(3000)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], loop=0)
    yield Case("many-frames.gif", buffer.getvalue(), judged=True)
    first, second = _frame(0), _frame(1)
    endless = buffer.getvalue()[: buffer.getvalue().index(b"\x2c")] + first + second * 300_000
    yield Case("endless.gif", endless, judged=True)
    huge = b"GIF89a\x08\x00\x08\x00\x00\x00\x00" + (b"\x21\xfe\xff" + b"x" * 255 + b"\x00") * 50_000
    yield Case(
        "endless-comments.gif", huge, frozenset({"truncated", "damaged", "unsupported_format"})
    )


def _frame(colour: int) -> bytes:
    """A frame of a GIF of 16 x 16, without its head."""
    data = saved(Image.new("P", (16, 16), colour), "GIF")
    return data[data.index(b"\x2c") : -1]


def _thin() -> Iterator[Case]:
    row = np.zeros((1, 100_000, 3), np.uint8)
    row[..., 0] = np.linspace(0, 255, 100_000)
    row[..., 2] = 255 - row[..., 0]
    for kind, suffix in (("PNG", "png"), ("BMP", "bmp"), ("TIFF", "tif")):
        for turned, shape in ((row, "wide"), (row.transpose(1, 0, 2), "tall")):
            img = Image.fromarray(np.ascontiguousarray(turned))
            yield Case(f"thin-{shape}.{suffix}", saved(img, kind), shows=turned)
    short = row[:, ::2][:, :16_000]
    yield Case("thin.webp", saved(Image.fromarray(short), "WEBP", lossless=True), shows=short)
    wide = row[:, :65_000]
    yield Case(
        "thin.jpg", saved(Image.fromarray(wide), "JPEG", quality=95), shows=wide, tolerance=3.0
    )
    pixel = np.full((1, 1, 3), (200, 10, 60), np.uint8)
    yield Case("one-pixel.png", saved(Image.fromarray(pixel), "PNG"), shows=pixel)
