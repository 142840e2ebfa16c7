"""What hostile requests are made of: odd texts, numbers, JSON, filters and pictures."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

from PIL import Image

ODD_TEXTS = (
    "", " ", "\x00", "\x00" * 50, "\u202e dog", "\ufeffdog", "e\u0301" * 100, "\U0001f415" * 50,
    "\ud83d", "\udfff\ud800", "\ufffe\uffff", "' OR 1=1 --", "${jndi:ldap://x}", "{{7*7}}",
    "<script>alert(1)</script>", "../../etc/passwd", "%s%n%p", "a" * 9000, "\r\nX: y", "\x1b[31m",
    "[PAD][MASK]", "ẞ" * 3000, "क्ष" * 200, "\u200b" * 100, "NaN", "null", "-0",
)  # fmt: skip
ODD_NUMBERS = (
    0, -1, 1, 2, 10, 1000, 1001, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400, 0.5, -0.0,
    1e-320, 1e308, -1e308, True, False, "3", None, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
OPERATORS = ("eq", "ne", "in", "nin", "gt", "gte", "lt", "lte", "exists", "contains")


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, odd ones first."""
    choice = rng.random()
    if choice < 0.35:
        return rng.choice(ODD_TEXTS)
    if choice < 0.7 or depth > 4:
        return rng.choice(ODD_NUMBERS)
    several = range(rng.choice((0, 1, 2, 5, 300) if depth == 0 else (0, 1, 2, 3)))
    if choice < 0.85:
        return [odd_value(rng, depth + 1) for _ in several]
    return {rng.choice(ODD_TEXTS)[:50] + str(n): odd_value(rng, depth + 1) for n in several}


def odd_filter(rng: random.Random, depth: int = 0) -> Any:
    """A filter that is nearly one."""
    choice = rng.random()
    if depth < 6 and choice < 0.4:
        joined: Any = [odd_filter(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3)))]
        return {rng.choice(("and", "or", "not")): rng.choice((joined, odd_filter(rng, depth + 1)))}
    if choice < 0.5:
        return odd_value(rng, 3)
    if choice < 0.52:
        nested: Any = {"a": {"eq": 1}}
        for _ in range(rng.choice((50, 200, 400))):
            nested = {"not": nested}
        return nested
    column = rng.choice((*ODD_TEXTS[:12], "id", "category", "year", "__class__", "a.b", "and"))
    return {column: {rng.choice((*OPERATORS, "regex", "$where", "")): odd_value(rng, 2)}}


def odd_picture(rng: random.Random) -> bytes:
    """A small picture, mostly damaged."""
    mode = rng.choice(("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16"))
    kind = {"CMYK": "TIFF", "I;16": "PNG", "RGBA": "PNG", "P": "GIF"}.get(
        mode, rng.choice(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"))
    )
    out = io.BytesIO()
    size = (rng.choice((1, 2, 33, 300)), rng.choice((1, 5, 64)))
    picture = Image.new(mode if kind != "WEBP" else "RGB", size)
    picture.save(out, kind)
    data = bytearray(out.getvalue())
    choice = rng.random()
    if choice < 0.4:
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif choice < 0.6:
        del data[rng.randrange(len(data)) :]
    elif choice < 0.7:
        data += rng.randbytes(3000)
    elif choice < 0.8:
        return rng.choice((b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"PK\x03\x04",
                           b"<svg/>", b"II*\x00" + b"\xff" * 200, rng.randbytes(500)))  # fmt: skip
    elif choice < 0.9:
        return _lying_png(rng)
    return bytes(data)


def _lying_png(rng: random.Random) -> bytes:
    """A PNG whose header promises what is not there."""
    side = rng.choice((0, 7000, 7071, 8000, 65_535, 2**31 - 1))
    header = struct.pack(">IIBBBBB", side, rng.choice((1, side)), 8, rng.choice((0, 2, 6)), 0, 0, 0)
    pixels = zlib.compress(bytes(rng.choice((1, 100_000))))
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    if rng.random() < 0.3:  # a bomb of text
        chunks.insert(1, (b"zTXt", b"a\x00\x00" + zlib.compress(bytes(2_000_000))))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
