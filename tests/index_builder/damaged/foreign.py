"""Files of other kinds under a picture's name, pictures under another picture's name, and stubs."""

import io
import tarfile
import zipfile
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.index_builder.damaged.case import Case, saved, scene

_OTHER = frozenset({"unsupported_format"})
_STUB = frozenset({"unsupported_format", "truncated", "damaged"})


def cases() -> Iterator[Case]:
    """All of them."""
    for name, data in _foreign().items():
        yield Case(f"foreign-{name}", data, _OTHER)
    picture = scene(7)
    img = Image.fromarray(picture)
    for kind, suffix in (("PNG", "jpg"), ("BMP", "png"), ("TIFF", "webp"), ("PNG", "gif")):
        yield Case(f"named-{kind}.{suffix}", saved(img, kind), shows=picture)
    webp = saved(img, "WEBP", lossless=True)
    yield Case("named-WEBP.bmp", webp, shows=picture)
    yield Case("named-JPEG.JPE", saved(img, "JPEG", quality=95), shows=picture, tolerance=3.0)
    yield Case("zero.jpg", b"", frozenset({"empty"}))
    for name, data in _stubs().items():
        yield Case(f"stub-{name}", data, _STUB)


def _foreign() -> dict[str, bytes]:
    img = Image.fromarray(scene(8))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("picture.png", saved(img, "PNG"))
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    page = b"<!doctype html><html><body>404 Not Found</body></html>"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nquit\n"
    return {
        "text.jpg": b"I am a text file, not a picture.\n" * 20,
        "utf16.jpg": "Not a picture".encode("utf-16"),
        "document.jpg": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
        "archive.jpg": packed.getvalue(),
        "archive.png": tarred.getvalue(),
        "program.jpg": b"MZ\x90\x00" + b"\x00" * 500,
        "program.png": b"\x7fELF\x02\x01\x01" + b"\x00" * 500,
        "drawing.png": svg,
        "page.png": page,
        "page.jpg": page,
        "data.jpg": b'{"error": "rate limited"}',
        "postscript.jpg": postscript,
        "zeros.jpg": bytes(4096),
        "noise.jpg": np.random.default_rng(0).bytes(4096),
        "noise.png": np.random.default_rng(1).bytes(65536),
        "icon.png": saved(img.resize((32, 32)), "ICO"),
        "jpeg2000.jpg": saved(img, "JPEG2000"),
        "portable.png": saved(img, "PPM"),
        "targa.gif": saved(img, "TGA"),
        "paintbrush.bmp": saved(img, "PCX"),
        "photoshop.tif": b"8BPS\x00\x01" + bytes(6) + b"\x00\x03" + bytes(200),
        "film.jpg": b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + bytes(200),
        "avif.jpg": b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1miaf" + bytes(200),
        "heic.jpg": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200),
        "sound.jpg": b"ID3\x04\x00\x00\x00\x00\x00\x00" + b"\xff\xfb\x90\x00" * 100,
        "compressed.png": b"\x1f\x8b\x08\x00" + bytes(100),
        "wave.webp": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100),
        "cursor.bmp": b"\x00\x00\x02\x00\x01\x00" + bytes(100),
    }


def _stubs() -> dict[str, bytes]:
    return {
        "byte.jpg": b"\xff",
        "start.jpg": b"\xff\xd8",
        "start-and-end.jpg": b"\xff\xd8\xff\xd9",
        "application.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
        "markers.jpg": b"\xff\xd8" + b"\xff" * 5000,
        "lengths.jpg": b"\xff\xd8" + b"\xff\xe1\x00\x02" * 5000,
        "signature.png": b"\x89PNG\r\n\x1a\n",
        "riff.webp": b"RIFF\xff\xff\xff\xffWEBP",
        "vp8.webp": b"RIFF\x1a\x00\x00\x00WEBPVP8 \xff\xff\xff\x7f" + bytes(20),
        "signature.gif": b"GIF89a",
        "screen.gif": b"GIF89a\x10\x00\x10\x00\x00\x00\x00",
        "trailer.gif": b"GIF89a\x10\x00\x10\x00\x00\x00\x00;",
        "signature.bmp": b"BM",
        "header.bmp": b"BM" + bytes(52),
        "signature.tif": b"II*\x00",
        "nowhere.tif": b"II*\x00\xff\xff\xff\xff",
    }
