"""From bytes to an RGB picture: the one place where image files are decoded.

Training, indexing and serving all call `decode_image`, so a file means the same pixels everywhere.
"""

import io
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cots_model.errors import ImageError

ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000

_BAND_PIXELS = 2**20
_INTEGER_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def decode_image(source: bytes | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to upright 8-bit RGB.

    The size is checked from the header, before any pixel is decoded. EXIF rotation is applied,
    transparency is laid over white, 16-bit and float samples are scaled to 8 bits, palettes and
    CMYK are converted, and an animation gives its first frame.

    Args:
        source: the file's bytes, or its path.
        max_pixels: largest width x height accepted.

    Raises:
        ImageError: with a `reason`, for anything that is not a complete picture in one of
            `ALLOWED_FORMATS`.
    """
    name = source.name if isinstance(source, Path) else "image"
    data = _read(source, name)
    try:
        with Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS) as img:
            _check_size(img, max_pixels, name)
            if img.format == "PNG":
                _check_png(data)
            img.load()
            upright = ImageOps.exif_transpose(img)
        del img  # its pixels make room for those to come
        return _to_rgb(upright)
    except ImageError:
        raise
    except MemoryError as err:
        raise _out_of_memory(name) from err
    except UnidentifiedImageError as err:
        accepted = ", ".join(ALLOWED_FORMATS)
        message = f"{name} is not a picture in a known format; accepted: {accepted}"
        raise ImageError("unsupported_format", message) from err
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise ImageError("too_many_pixels", f"{name}: {err}; at most {max_pixels:,}") from err
    except Exception as err:  # Pillow's decoders raise dozens of types on hostile bytes
        if "out of memory" in str(err).lower():
            raise _out_of_memory(name) from err
        reason = "truncated" if "truncated" in str(err).lower() else "damaged"
        raise ImageError(reason, f"{name} could not be decoded ({err}); save it again") from err


def read_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height of a picture as stored, by its header; nothing is decoded.

    Raises:
        ImageError: if it is none of `ALLOWED_FORMATS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=ALLOWED_FORMATS) as img:
                return img.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        message = f"not a picture that can be read ({err}); give one of {ALLOWED_FORMATS}"
        raise ImageError("unreadable", message) from err


def _read(source: bytes | Path, name: str) -> bytes:
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError as err:
        message = f"{name} could not be read ({err.strerror}); check that it exists and is readable"
        raise ImageError("unreadable", message) from err
    if not data:
        raise ImageError("empty", f"{name} holds 0 bytes; a picture is needed")
    return data


def _check_size(img: Image.Image, max_pixels: int, name: str) -> None:
    width, height = img.size
    if width * height > max_pixels:
        message = (
            f"{name} is {width} x {height} = {width * height:,} pixels; "
            f"at most {max_pixels:,} are accepted; make it smaller"
        )
        raise ImageError("too_many_pixels", message)


def _check_png(data: bytes) -> None:
    """Compare the checksums of a PNG's pixels: Pillow does not, and shows flipped bits as they are.

    Raises:
        ValueError: if one differs. What is cut off is left to the decoder.
    """
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        checked = memoryview(data)[at + 4 : at + 8 + length]
        stated = data[at + 8 + length : at + 12 + length]
        whole = bytes(checked[:4]) == b"IDAT" and len(stated) == 4
        if whole and zlib.crc32(checked) != int.from_bytes(stated, "big"):
            raise ValueError("the checksum of its pixels is wrong")
        at += 12 + length


def _out_of_memory(name: str) -> ImageError:
    message = f"decoding {name} takes more memory than there is; make it smaller"
    return ImageError("out_of_memory", message)


def _to_rgb(img: Image.Image) -> Image.Image:
    if img.mode == "RGB" and not img.has_transparency_data:
        return img
    if img.mode in _INTEGER_MODES or img.mode == "F":
        return _scale_to_8_bits(img).convert("RGB")
    if img.has_transparency_data:
        return _over_white(img)
    return img.convert("RGB")


def _over_white(img: Image.Image) -> Image.Image:
    """Lay transparent pixels over white, a band of rows at a time, as whole copies are large."""
    canvas = Image.new("RGB", img.size)
    step = max(1, _BAND_PIXELS // img.width)
    for top in range(0, img.height, step):
        band = img.crop((0, top, img.width, min(top + step, img.height))).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        canvas.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return canvas


def _scale_to_8_bits(img: Image.Image) -> Image.Image:
    """Scale 16-bit samples by their full range, and other deep samples by the finite range in use.

    A band of rows at a time: the numbers between take no more memory than the picture itself.
    """
    samples_HW = np.asarray(img)
    low, high = _range_of(samples_HW, img.mode)
    scaled_HW = np.empty(samples_HW.shape, np.uint8)
    step = max(1, _BAND_PIXELS // img.width)
    for top in range(0, img.height, step):
        band = samples_HW[top : top + step].astype(np.float64)
        band = np.nan_to_num(band, nan=0.0, posinf=high, neginf=low).clip(low, high)
        scaled_HW[top : top + step] = ((band - low) / max(high - low, 1e-12) * 255.0).round()
    return Image.fromarray(scaled_HW)


def _range_of(samples_HW: np.ndarray, mode: str) -> tuple[float, float]:
    if mode != "F":
        low, high = float(samples_HW.min()), float(samples_HW.max())
        return (0.0, 65535.0) if low >= 0.0 and high <= 65535.0 else (low, high)
    finite_HW = np.isfinite(samples_HW)
    if not finite_HW.any():
        return 0.0, 0.0
    low = samples_HW.min(where=finite_HW, initial=np.inf)
    return float(low), float(samples_HW.max(where=finite_HW, initial=-np.inf))
