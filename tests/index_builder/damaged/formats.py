"""Good pictures of rare kinds, and bad metadata around good pictures."""

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.index_builder.damaged.bombs import png
from tests.index_builder.damaged.case import Case, Pixels, saved, scene

_BROKEN = frozenset({"damaged", "truncated", "unsupported_format"})


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _colours()
    yield from _deep()
    yield from _see_through()
    yield from _turned()
    yield from _bad_metadata()
    yield from _bad_directories()
    yield from _animations()


def _three(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=2)


def _colours() -> Iterator[Case]:
    picture = scene(20)
    img = Image.fromarray(picture)
    inverse = Image.fromarray(255 - picture)
    cmyk = Image.merge("CMYK", [*inverse.split(), Image.new("L", img.size, 0)])
    yield Case("cmyk.jpg", saved(cmyk, "JPEG", quality=95), shows=picture, tolerance=4.0)
    yield Case("cmyk.tif", saved(cmyk, "TIFF"), shows=picture)
    ycck = saved(inverse, "JPEG", quality=95, subsampling=0)
    yield Case(
        "adobe-rgb.jpg",
        _adobe(saved(img, "JPEG", quality=95, keep_rgb=True), 0),
        shows=picture,
        tolerance=3.0,
    )
    yield Case("adobe-ycc.jpg", _adobe(ycck, 1), shows=255 - picture, tolerance=3.0)
    yield Case(
        "keep-rgb.jpg", saved(img, "JPEG", quality=95, keep_rgb=True), shows=picture, tolerance=3.0
    )
    grey = picture[..., 1]
    yield Case(
        "grey.jpg",
        saved(Image.fromarray(grey), "JPEG", quality=95),
        shows=_three(grey),
        tolerance=2.0,
    )
    yield Case("grey.webp", saved(Image.fromarray(grey), "WEBP", lossless=True), shows=_three(grey))
    yield Case("lab.tif", saved(_lab(grey), "TIFF"), shows=_lab_shows(grey), tolerance=3.0)
    bits = (grey > 128).astype(np.uint8)
    for kind in ("PNG", "BMP", "TIFF"):
        one = Image.fromarray(bits * 255).convert("1", dither=Image.Dither.NONE)
        yield Case(
            f"one-bit.{kind.lower()[:4].replace('tiff', 'tif')}",
            saved(one, kind),
            shows=_three(bits * 255),
        )
    few = img.quantize(13, dither=Image.Dither.NONE)
    for kind, suffix in (("PNG", "png"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")):
        yield Case(f"palette.{suffix}", saved(few, kind), shows=np.asarray(few.convert("RGB")))
    for kind in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "lzma", "zstd"):
        yield Case(f"{kind}.tif", saved(img, "TIFF", compression=kind), shows=picture)
    yield Case(
        "jpeg-inside.tif",
        saved(img, "TIFF", compression="jpeg", quality=95),
        shows=picture,
        tolerance=4.0,
    )
    yield Case(
        "interlaced.gif", saved(few, "GIF", interlace=True), shows=np.asarray(few.convert("RGB"))
    )


def _lab(grey: Pixels) -> Image.Image:
    neutral = Image.new("L", (grey.shape[1], grey.shape[0]), 128)
    return Image.merge("LAB", [Image.fromarray(grey), neutral, neutral])


def _lab_shows(grey: Pixels) -> Pixels:
    """Lightness of CIE L*a*b* as a grey of sRGB."""
    lightness = grey / 255 * 100
    f = (lightness + 16) / 116
    linear = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return _three((encoded * 255).round().clip(0, 255).astype(np.uint8))


def _adobe(data: bytes, transform: int) -> bytes:
    """With Adobe's marker, which says how the colours are stored."""
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    place = data.index(b"\xff\xdb")
    return data[:2] + marker + data[place:] if b"Adobe" not in data else data


def _deep() -> Iterator[Case]:
    grey = scene(21)[..., 0]
    deep = grey.astype(np.uint16) * 257
    yield Case("deep.png", saved(Image.fromarray(deep), "PNG"), shows=_three(grey))
    yield Case("deep.tif", saved(Image.fromarray(deep), "TIFF"), shows=_three(grey))
    picture = scene(22)
    rows = np.zeros((64, 1 + 96 * 6), np.uint8)
    rows[:, 1:] = np.repeat(picture.reshape(64, -1), 2, axis=1)  # high and low byte alike
    yield Case("deep-colour.png", png(96, 64, rows.tobytes(), depth=16, kind=2), shows=picture)
    for depth, step in ((2, 85), (4, 17)):
        values = grey // (256 // 2**depth)
        per_byte = 8 // depth
        packed = np.zeros((64, 1 + 96 // per_byte), np.uint8)
        for part in range(per_byte):
            packed[:, 1:] |= values[:, part::per_byte] << (8 - depth * (part + 1))
        yield Case(
            f"depth-{depth}.png",
            png(96, 64, packed.tobytes(), depth=depth),
            shows=_three(values * step),
        )
    low, high = grey.astype(np.float32).min(), grey.astype(np.float32).max()
    stretched = _three(((grey - low) / (high - low) * 255).round().astype(np.uint8))
    yield Case(
        "float.tif", saved(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"), shows=stretched
    )
    gaps = grey.astype(np.float32)
    gaps[0, 0], gaps[0, 1] = np.nan, np.inf
    yield Case("float-gaps.tif", saved(Image.fromarray(gaps), "TIFF"), shows=stretched)
    nothing = np.full((8, 8), np.nan, np.float32)
    yield Case(
        "float-nan.tif",
        saved(Image.fromarray(nothing), "TIFF"),
        shows=np.zeros((8, 8, 3), np.uint8),
    )
    wide = (grey.astype(np.int32) - 100) * 100_000
    yield Case("int32.tif", saved(Image.fromarray(wide), "TIFF"), shows=stretched)


def _see_through() -> Iterator[Case]:
    picture = scene(23)
    img = Image.fromarray(picture)
    slope = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))
    share = slope[..., None] / 255
    white = (picture * share + 255 * (1 - share)).round().astype(np.uint8)
    clear = img.copy()
    clear.putalpha(Image.fromarray(slope))
    yield Case("clear.png", saved(clear, "PNG"), shows=white)
    yield Case("clear.tif", saved(clear, "TIFF"), shows=white)
    yield Case("clear.webp", saved(clear, "WEBP", lossless=True, exact=True), shows=white)
    grey = picture[..., 0]
    both = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(slope)])
    blended = (grey * share[..., 0] + 255 * (1 - share[..., 0])).round().astype(np.uint8)
    yield Case("clear-grey.png", saved(both, "PNG"), shows=_three(blended))
    few = img.quantize(16, dither=Image.Dither.NONE)
    numbers = np.asarray(few)
    shown = np.asarray(few.convert("RGB")).copy()
    shown[numbers == 5] = 255
    yield Case("clear-index.png", saved(few, "PNG", transparency=5), shows=shown)
    yield Case("clear-index.gif", saved(few, "GIF", transparency=5), shows=shown)
    bands = bytes((np.arange(16) * 17).astype(np.uint8))
    part = (np.arange(16) * 17 / 255)[numbers][..., None]
    faded = np.asarray(few.convert("RGB")) * part + 255 * (1 - part)
    yield Case(
        "clear-palette.png",
        saved(few, "PNG", transparency=bands),
        shows=faded.round().astype(np.uint8),
    )
    key = picture.copy()
    key[:20] = (1, 2, 3)
    shown = key.copy()
    shown[(key == (1, 2, 3)).all(axis=2)] = 255
    yield Case(
        "clear-colour.png", saved(Image.fromarray(key), "PNG", transparency=(1, 2, 3)), shows=shown
    )


def _turned() -> Iterator[Case]:
    """The eight ways to lie in a file, and orientations that do not exist."""
    picture = scene(24)
    flips = {
        1: picture, 2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1],
        5: picture.transpose(1, 0, 2), 6: np.rot90(picture, -1),
        7: picture[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(picture),
    }  # fmt: skip
    img = Image.fromarray(picture)
    for orientation in (*range(10), 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        shows = flips.get(orientation, picture)
        yield Case(f"turned-{orientation}.png", saved(img, "PNG", exif=exif), shows=shows)
        if orientation in (0, 6, 9):
            data = saved(img, "JPEG", quality=95, exif=exif)
            yield Case(f"turned-{orientation}.jpg", data, shows=shows, tolerance=3.0)
    words = Image.Exif()
    words[0x010E] = "description"
    texts = words.tobytes().replace(struct.pack(">H", 0x010E), struct.pack(">H", 0x0112))
    texts = texts.replace(struct.pack("<H", 0x010E), struct.pack("<H", 0x0112))
    yield Case(
        "turned-by-words.jpg",
        saved(img, "JPEG", quality=95, exif=texts),
        _BROKEN,
        picture,
        tolerance=3.0,
    )


def _bad_metadata() -> Iterator[Case]:
    picture = scene(25)
    img = Image.fromarray(picture)
    rng = np.random.default_rng(25)
    blocks = {
        "noise": b"Exif\x00\x00" + rng.bytes(500),
        "short": b"Exif\x00\x00II*\x00",
        "nowhere": b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        "circle": b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
        "many": b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + rng.bytes(6000),
    }
    for name, exif in blocks.items():
        data = saved(img, "JPEG", quality=95, exif=exif)
        yield Case(f"exif-{name}.jpg", data, _BROKEN, picture, tolerance=3.0)
    for name, profile in {
        "noise": rng.bytes(3000),
        "empty": b"",
        "large": rng.bytes(300_000),
    }.items():
        data = saved(img, "JPEG", quality=95, icc_profile=profile)
        yield Case(f"profile-{name}.jpg", data, shows=picture, tolerance=3.0)
        yield Case(f"profile-{name}.png", saved(img, "PNG", icc_profile=profile), shows=picture)
        yield Case(
            f"profile-{name}.webp",
            saved(img, "WEBP", lossless=True, icc_profile=profile),
            shows=picture,
        )
    yield Case(
        "behind.jpg", saved(img, "JPEG", quality=95) + rng.bytes(9000), shows=picture, tolerance=3.0
    )
    yield Case("behind.png", saved(img, "PNG") + rng.bytes(9000), shows=picture)
    yield Case("before.jpg", b"\n" + saved(img, "JPEG"), frozenset({"unsupported_format"}))


def _bad_directories() -> Iterator[Case]:
    """TIFF: tables of tags that point round in circles, outside, or at far too much."""
    picture = scene(26)
    img = Image.fromarray(picture)
    plain = saved(img, "TIFF")
    pages = saved(img, "TIFF", save_all=True, append_images=[Image.fromarray(scene(27))] * 3)
    yield Case("pages.tif", pages, shows=picture)
    start = struct.unpack("<I", plain[4:8])[0]
    count = struct.unpack("<H", plain[start : start + 2])[0]
    link = start + 2 + 12 * count
    for name, target in {"itself": start, "header": 0, "far": 2**32 - 1}.items():
        data = plain[:link] + struct.pack("<I", target) + plain[link + 4 :]
        yield Case(f"circle-{name}.tif", data, _BROKEN, picture)
    yield Case("tags.tif", plain[:start] + b"\xff\xff" + plain[start + 2 :], _BROKEN, picture)
    for number in range(count):
        place = start + 2 + 12 * number
        tag = struct.unpack("<H", plain[place : place + 2])[0]
        for what, value in {"count": (place + 4, 2**32 - 1), "value": (place + 8, 2**31)}.items():
            data = plain[: value[0]] + struct.pack("<I", value[1]) + plain[value[0] + 4 :]
            reasons = _BROKEN | {"too_many_pixels", "out_of_memory"}
            yield Case(f"tag-{tag}-{what}.tif", data, reasons, picture)
    for name, head in {
        "big": b"MM\x00*\x00\x00\x00\x08",
        "bigtiff": b"II+\x00\x08\x00\x00\x00",
    }.items():
        yield Case(f"header-{name}.tif", head + bytes(300), _BROKEN)


def _animations() -> Iterator[Case]:
    first, second = scene(28), scene(29)
    frames = [Image.fromarray(picture) for picture in (first, second)]
    for kind, suffix, options in (
        ("PNG", "png", {}),
        ("WEBP", "webp", {"lossless": True}),
        ("TIFF", "tif", {}),
    ):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        yield Case(f"animation.{suffix}", data, shows=first)
    few = [frame.quantize(32, dither=Image.Dither.NONE) for frame in frames]
    data = saved(few[0], "GIF", save_all=True, append_images=few[1:], loop=0)
    yield Case("animation.gif", data, shows=np.asarray(few[0].convert("RGB")))
    place = data.index(b"\x2c", 13 + 3 * 32)
    wide = np.full((264, 296, 3), np.asarray(few[0].getpalette()[:3]), np.uint8)
    wide[200:, 200:] = np.asarray(few[0].convert("RGB"))
    boxes = {"outside": (200, 200, 96, 64), "larger": (0, 0, 900, 700), "none": (0, 0, 0, 0)}
    for name, box in boxes.items():
        lying = data[:place] + b"\x2c" + struct.pack("<HHHH", *box) + data[place + 9 :]
        yield Case(f"frame-{name}.gif", lying, _BROKEN, wide if name == "outside" else None)
