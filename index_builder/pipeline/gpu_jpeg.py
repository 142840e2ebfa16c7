"""Decoding plain JPEGs on a GPU, with the resizing; all other pictures take the usual way.

The two ways round differently in places, so vectors agree to a cosine of 0.999 and more, not to
the bit: `jpeg_decoder` belongs to a gallery's recipe.

Shape letters: B pictures, C colours, H, W.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cots_model.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from cots_model.preprocess import PicturePreprocess, Preprocess

BATCH = 32
"""Pictures decoded at once."""

MAX_PIXELS = 16_000_000
MAX_BYTES = 32 * 1024 * 1024

_ORIENTATION = 0x0112
_RGB_OR_GREY = ("RGB", "L")
_END_OF_IMAGE = b"\xff\xd9"


def is_plain_jpeg(data: bytes) -> bool:
    """Whether a GPU may decode it: whole, baseline, RGB or grey, upright, of a common size."""
    from PIL import Image

    if data[:2] != b"\xff\xd8" or len(data) > MAX_BYTES:
        return False
    if data.rstrip(b"\x00")[-2:] != _END_OF_IMAGE:
        return False  # cut off, or something behind the picture: let the careful decoder see
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as img:
            return (
                img.format == "JPEG"  # MPO, which holds several pictures, is another
                and img.mode in _RGB_OR_GREY
                and img.width * img.height <= MAX_PIXELS
                and "progressive" not in img.info
                and img.info.get("adobe_transform") != 0  # RGB stored as such
                and img.getexif().get(_ORIENTATION, 1) == 1
            )
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the usual way will say
        return False


class JpegDecoder:
    """Decodes batches of plain JPEGs on one device into preprocessed pixels."""

    def __init__(self, preprocess: PicturePreprocess, device: str) -> None:
        """Decode for one checkpoint's preprocessing.

        Raises:
            InputError: for an ensemble's.
        """
        from cots_model.preprocess import Preprocess

        if not isinstance(preprocess, Preprocess):
            raise InputError(
                "--jpeg-decoder gpu works for a checkpoint, not for an ensemble; take "
                "--jpeg-decoder cpu"
            )
        self._preprocess: Preprocess = preprocess
        self._device = device

    def pixels(self, jpegs: Sequence[bytes]) -> list[npt.NDArray[np.float32] | None]:
        """Preprocessed pixels `[3,H,W]` of each; `None` for one that the device cannot decode."""
        if not jpegs:
            return []
        try:
            decoded = self._decode(jpegs)
        except RuntimeError:  # one of them; the others are tried by themselves
            if len(jpegs) == 1:
                return [None]
            return [self.pixels([jpeg])[0] for jpeg in jpegs]
        square_BCHW = self._square(decoded)
        return list(self._preprocess.normalise(square_BCHW).cpu().numpy())

    def _decode(self, jpegs: Sequence[bytes]) -> list[Tensor]:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is said to move to another package
            encoded = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
            return list(decode_jpeg(encoded, ImageReadMode.RGB, device=self._device))

    def _square(self, imgs: Sequence[Tensor]) -> Tensor:
        """Each as a square of whole numbers, as `cots_model.preprocess.resize` makes it."""
        import torch
        from torch.nn.functional import interpolate

        side = self._preprocess.config.image_size
        squares = []
        for img_CHW in imgs:
            if self._preprocess.config.resize == "crop":
                img_CHW = _centre_square(img_CHW)
            square_1CHW = interpolate(
                img_CHW[None].float(), (side, side), mode="bicubic", antialias=True
            )
            squares.append(square_1CHW.round().clamp(0, 255).to(torch.uint8))
        return torch.cat(squares)


def _centre_square(img_CHW: Tensor) -> Tensor:
    height, width = img_CHW.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return img_CHW[:, top : top + side, left : left + side]
