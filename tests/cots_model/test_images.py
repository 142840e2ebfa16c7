"""Decoding: the right pixels for every kind of file, and a reason for every bad one."""

import io
import pickle
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cots_model import images
from cots_model.errors import ImageError
from cots_model.images import ALLOWED_FORMATS, decode_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)


def encoded(img: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    img.save(file, kind, **options)
    return file.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_with_header_of(width: int, height: int) -> bytes:
    """A few bytes that announce a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


BAD = {
    "truncated jpeg": (encoded(noise(), "JPEG")[:-200], "truncated"),
    "truncated png": (encoded(noise(), "PNG")[:-200], "truncated"),
    "text": (b"this is no picture\n", "unsupported_format"),
    "html": (b"<html><body>404</body></html>", "unsupported_format"),
    "empty": (b"", "empty"),
    "ppm": (encoded(noise(), "PPM"), "unsupported_format"),
    "ico": (encoded(noise(), "ICO"), "unsupported_format"),
    "pdf": (b"%PDF-1.7\n", "unsupported_format"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_format"),
    "just over the limit": (png_with_header_of(7072, 7072), "too_many_pixels"),
    "pillow's warning": (png_with_header_of(10_000, 10_000), "too_many_pixels"),
    "decompression bomb": (png_with_header_of(60_000, 60_000), "too_many_pixels"),
    "too long a side": (png_with_header_of(2**31 - 1, 2**31 - 1), "too_many_pixels"),
}


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_decode_image_gives_the_reason_for_a_bad_picture(data, reason, tmp_path):
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ImageError) as caught:
            decode_image(source)
        assert caught.value.reason == reason
    assert "holiday.jpg" in str(caught.value)


def test_decode_image_says_which_formats_are_accepted():
    with pytest.raises(ImageError, match=", ".join(ALLOWED_FORMATS)):
        decode_image(b"text")


@pytest.mark.parametrize("name", ["folder", "missing.jpg"])
def test_decode_image_refuses_what_is_no_file(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match=name) as caught:
        decode_image(tmp_path / name)
    assert caught.value.reason == "unreadable"


def test_decode_image_survives_any_damage_to_a_jpeg():
    data = encoded(noise(), "JPEG", exif=Image.Exif())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 5):
            damaged[place] = rng.integers(256)
        try:
            assert decode_image(bytes(damaged)).mode == "RGB"
        except ImageError:
            refused += 1
    assert 0 < refused < 100


def test_image_error_keeps_its_reason_through_pickle():
    error = pickle.loads(pickle.dumps(ImageError("empty", "x holds 0 bytes")))  # noqa: S301
    assert (error.reason, str(error)) == ("empty", "x holds 0 bytes")


def test_decode_image_takes_a_limit_on_pixels():
    data = encoded(noise(40, 30), "PNG")
    assert decode_image(data, max_pixels=1200).size == (40, 30)
    with pytest.raises(ImageError, match=r"40 x 30 = 1,200 pixels; at most 1,199"):
        decode_image(data, max_pixels=1199)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_decode_image_gives_the_pixels_of_a_lossless_file(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(encoded(noise(), kind, **options))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(noise()))


def test_decode_image_takes_one_pixel():
    decoded = decode_image(encoded(Image.new("RGB", (1, 1), RED), "PNG"))
    assert (decoded.size, decoded.mode, decoded.getpixel((0, 0))) == ((1, 1), "RGB", RED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_image_turns_as_exif_says(orientation):
    """Each orientation is undone: the upright picture has its red corner at the top left."""
    upright = Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 8, 8))
    upright.paste(BLUE, (24, 0, 32, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(upright))


def test_decode_image_lays_alpha_over_white():
    img = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        img.putpixel((x, 0), (200, 100, 0, alpha))
    decoded = np.asarray(decode_image(encoded(img, "PNG")))[0].astype(int)
    share = np.array([0, 128, 255])[:, None] / 255
    expected = share * [200, 100, 0] + (1 - share) * 255
    np.testing.assert_allclose(decoded, expected, atol=1)


def test_decode_image_lays_grey_with_alpha_over_white():
    img = Image.new("LA", (2, 1), (10, 0))
    img.putpixel((1, 0), (10, 255))
    decoded = decode_image(encoded(img, "PNG"))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (10, 10, 10)]


def test_decode_image_honours_a_transparent_palette_entry():
    img = Image.new("P", (2, 1), 0)
    img.putpalette([*GREEN, *RED])
    img.putpixel((1, 0), 1)
    opaque, keyed = encoded(img, "PNG"), encoded(img, "PNG", transparency=0)
    assert decode_image(opaque).getpixel((0, 0)) == GREEN
    assert decode_image(keyed).getpixel((0, 0)) == WHITE
    assert decode_image(keyed).getpixel((1, 0)) == RED


def test_decode_image_honours_a_transparent_colour():
    img = Image.new("RGB", (2, 1), GREEN)
    img.putpixel((1, 0), RED)
    decoded = decode_image(encoded(img, "PNG", transparency=GREEN))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]


def test_decode_image_scales_16_bits_by_their_whole_range():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(values), "PNG")))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 1, 128, 255])
    assert (decoded == decoded[:, :, :1]).all()


def test_decode_image_scales_float_samples_by_the_range_in_use():
    values = np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF")))
    np.testing.assert_array_equal(decoded[0, :, 1], [0, 128, 255])


def test_decode_image_leaves_samples_that_are_not_finite_out_of_the_range():
    values = np.array([[-np.inf, -1.0, 0.0, 1.0, np.inf, np.nan]], dtype=np.float32)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF")))
    np.testing.assert_array_equal(decoded[0, :, 1], [0, 0, 128, 255, 255, 128])
    nothing = np.full((2, 2), np.nan, np.float32)
    assert np.asarray(decode_image(encoded(Image.fromarray(nothing), "TIFF"))).max() == 0


def test_decode_image_scales_a_deep_picture_in_little_memory(monkeypatch):
    values = np.arange(1000 * 1000, dtype=np.float64).reshape(1000, 1000) % 65536
    data = encoded(Image.fromarray(values.astype(np.uint16)), "PNG")
    monkeypatch.setattr(images, "_BAND_PIXELS", 7000)  # 142 bands of 7 rows, and one of 6
    tracemalloc.start()
    try:
        decoded = np.asarray(decode_image(data))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(decoded[:, :, 0], (values / 65535 * 255).round())
    assert peak_bytes < 8 * values.size  # the float64 numbers at once would be as many


def test_decode_image_takes_a_constant_float_picture():
    data = encoded(Image.fromarray(np.full((2, 2), 7.0, np.float32)), "TIFF")
    assert np.asarray(decode_image(data)).shape == (2, 2, 3)


def test_decode_image_converts_cmyk():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode_image(encoded(cmyk, "JPEG", quality=95))
    assert decoded.mode == "RGB"
    np.testing.assert_allclose(np.asarray(decoded).reshape(-1, 3).mean(0), RED, atol=4)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_decode_image_takes_grey_pictures(mode):
    decoded = decode_image(encoded(Image.new(mode, (2, 2), 255), "PNG"))
    assert decoded.getpixel((1, 1)) == WHITE


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_decode_image_takes_the_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, WHITE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.n_frames == 3
    assert decode_image(data).getpixel((4, 4)) == RED


def test_decode_image_gives_paths_and_bytes_the_same_pixels(tmp_path: Path):
    path = tmp_path / "a.jpg"
    noise().save(path)
    assert decode_image(path).tobytes() == decode_image(path.read_bytes()).tobytes()


def test_decode_image_lays_large_transparent_pictures_over_white_like_small_ones():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1100, 1300, 4), dtype=np.uint8)  # more than one band
    img = Image.fromarray(pixels)
    buffer = io.BytesIO()
    img.save(buffer, "PNG")
    white = Image.new("RGBA", img.size, "white")
    expected = Image.alpha_composite(white, img).convert("RGB")
    assert decode_image(buffer.getvalue()).tobytes() == expected.tobytes()


def test_decode_image_refuses_a_png_with_flipped_bits_among_its_pixels():
    buffer = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    data = bytearray(buffer.getvalue())
    assert decode_image(bytes(data)).size == (64, 64)
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="checksum") as caught:
        decode_image(bytes(data))
    assert caught.value.reason == "damaged"
