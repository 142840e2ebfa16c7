"""How a picture and a text become tensors: one object for training, indexing and serving.

It is stored in every checkpoint (`preprocess.json`, `tokenizer.json`), so all three see the same
input. It is light and can be pickled: decoding workers carry it without loading a model.

Shape letters: B batch, L tokens, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from cots_model.checkpoint import PREPROCESS_FILE, TOKENIZER_FILE, locate, read_json
from cots_model.config import PreprocessConfig, parse
from cots_model.errors import CheckpointError


class PicturePreprocess(Protocol):
    """Turns pictures into what one encoder takes; can be pickled."""

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        ...

    @property
    def recipe(self) -> tuple[object, ...]:
        """What the result depends on besides the picture."""
        ...

    def image(self, img: Image.Image) -> Tensor:
        """Turn an RGB picture into float32 numbers of a fixed shape."""
        ...


@dataclass(frozen=True)
class Normalise:
    """Turns pixels `[..., 3,H,W]` uint8 into float32, on their device; light, can be pickled.

    Attributes:
        mean: of each channel, in [0, 1].
        std: likewise.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pixels_XHW: Tensor) -> Tensor:
        """Normalised, in a new tensor."""
        mean, std = (
            torch.tensor(values, device=pixels_XHW.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (pixels_XHW.float() / 255 - mean) / std


@dataclass(frozen=True)
class Tokens:
    """Texts as a model reads them.

    Attributes:
        tok_BL: int64.
        mask_BL: bool, true on tokens and false on padding.
        cut_at_B: of each text the character from which on the model reads no more; None if it
            reads all.
    """

    tok_BL: Tensor
    mask_BL: Tensor
    cut_at_B: tuple[int | None, ...]


class Preprocess:
    """Resizing, normalising and tokenizing, by the parameters of one checkpoint."""

    def __init__(self, config: PreprocessConfig, tokenizer: Tokenizer) -> None:
        """Take over `tokenizer` and set it to cut at `config.max_tokens`.

        Raises:
            CheckpointError: if the tokenizer has no padding token of the configured name.
        """
        pad_id = tokenizer.token_to_id(config.pad_token)
        if pad_id is None:
            raise CheckpointError(
                f"the tokenizer has no token {config.pad_token!r}; set pad_token in preprocess.json"
            )
        self.config = config
        self.pad_id: int = pad_id
        self.tokenizer = tokenizer
        self.tokenizer.enable_truncation(config.max_tokens)
        self.tokenizer.no_padding()

    @classmethod
    def from_pretrained(cls, source: str | Path = "cots-mini") -> Preprocess:
        """Read the preprocessing of a checkpoint (a folder, a bundled name or a hub id).

        Raises:
            CheckpointError: if there is no such checkpoint or its files cannot be read.
        """
        folder = locate(source)
        config = parse(
            PreprocessConfig, read_json(folder / PREPROCESS_FILE), origin=PREPROCESS_FILE
        )
        path = folder / TOKENIZER_FILE
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as err:  # the Rust library raises bare Exception
            raise CheckpointError(
                f"{path} is not a readable tokenizer ({err}); copy it again"
            ) from err
        return cls(config, tokenizer)

    def save(self, folder: Path) -> None:
        """Write `preprocess.json` and `tokenizer.json` into `folder`."""
        text = self.config.model_dump_json(indent=2) + "\n"
        (folder / PREPROCESS_FILE).write_text(text, "utf-8")
        (folder / TOKENIZER_FILE).write_text(self.tokenizer.to_str() + "\n", "utf-8")

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.config.image_size

    @property
    def recipe(self) -> tuple[object, ...]:
        """What the pixels depend on besides the picture."""
        config = self.config
        return config.image_size, config.resize, config.mean, config.std

    def image(self, img: Image.Image) -> Tensor:
        """Turn an RGB picture (see `decode_image`) into `[3,H,W]` float32, normalised."""
        return torch.from_numpy(_normalised(self._resized(img), self.config.mean, self.config.std))

    def pixels(self, img: Image.Image) -> Tensor:
        """Turn an RGB picture into `[3,H,W]` uint8: a quarter of the bytes, for `normalise`."""
        return torch.from_numpy(self._resized(img))

    def _resized(self, img: Image.Image) -> NDArray[np.uint8]:
        """`[3,H,W]`; by NumPy, for PyTorch would start threads for it in each that calls."""
        if img.mode != "RGB":
            raise ValueError(f"an RGB picture is needed, not {img.mode}; use decode_image")
        resized = resize(img, self.config.image_size, self.config.resize)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))

    @property
    def normalise(self) -> Normalise:
        """Turns `pixels` into what `image` gives."""
        return Normalise(self.config.mean, self.config.std)

    def images(self, imgs: Sequence[Image.Image]) -> Tensor:
        """Turn RGB pictures into one batch `[B,3,H,W]` float32."""
        return torch.stack([self.image(img) for img in imgs])

    def text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize: tok_BL and mask_BL of `tokens`."""
        tokens = self.tokens(texts)
        return tokens.tok_BL, tokens.mask_BL

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Tokenize, cut to `max_tokens` and pad to the longest of the batch."""
        valid = [without_surrogates(text) for text in texts]
        encodings = self.tokenizer.encode_batch(valid)  # lets other threads run, `encode` does not
        lengths_B = np.array([len(encoding) for encoding in encodings], np.int64)
        mask_BL = np.arange(lengths_B.max(initial=0)) < lengths_B[:, None]
        tok_BL = np.full(mask_BL.shape, self.pad_id, np.int64)
        tok_BL[mask_BL] = [token for encoding in encodings for token in encoding.ids]
        cut_at_B = tuple(map(_cut_at, encodings))
        return Tokens(torch.from_numpy(tok_BL), torch.from_numpy(mask_BL), cut_at_B)


def _cut_at(encoding: Encoding) -> int | None:
    return max(end for _, end in encoding.offsets) if encoding.overflowing else None


def without_surrogates(text: str) -> str:
    """A text that tokenizers take: in the place of each lone surrogate is a question mark."""
    return text.encode("utf-8", "replace").decode()


class PackedPreprocess:
    """Turns a picture into the inputs of all members, one behind the other in one vector `[X]`.

    Members that want the same pixels share them. Light, and can be pickled.
    """

    def __init__(self, members: Sequence[PicturePreprocess]) -> None:
        """Take the members' preprocessing in their order."""
        recipes = [member.recipe for member in members]
        self._distinct = [p for i, p in enumerate(members) if recipes.index(p.recipe) == i]
        distinct = [p.recipe for p in self._distinct]
        self._place_of_member = [distinct.index(recipe) for recipe in recipes]

    @property
    def image_size(self) -> int:
        """Largest side of the members' inputs, in pixels."""
        return max(p.image_size for p in self._distinct)

    @property
    def recipe(self) -> tuple[object, ...]:
        """What the pixels depend on."""
        return tuple(p.recipe for p in self._distinct)

    def image(self, img: Image.Image) -> Tensor:
        """Turn an RGB picture into `[X]` float32."""
        return torch.from_numpy(
            np.concatenate([p.image(img).numpy().ravel() for p in self._distinct])
        )

    def unpack(self, img_BX: Tensor) -> list[Tensor]:
        """Split `[B,X]` into each member's pixels `[B,3,H,W]`."""
        sides = [p.image_size for p in self._distinct]
        parts = img_BX.split([3 * side * side for side in sides], dim=1)
        images = [x.view(-1, 3, side, side) for x, side in zip(parts, sides, strict=True)]
        return [images[place] for place in self._place_of_member]


def _normalised(
    pixels_CHW: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """What `Normalise` gives, bit by bit."""
    mean_C11, std_C11 = (np.array(one, np.float32)[:, None, None] for one in (mean, std))
    scaled: NDArray[np.float32] = pixels_CHW.astype(np.float32) / np.float32(255)
    return (scaled - mean_C11) / std_C11


def squared(img: Image.Image, side: int, how: Literal["squash", "crop"]) -> NDArray[np.float32]:
    """An RGB picture as a square `[H,W,3]` of values in [0, 1]; see `PreprocessConfig.resize`."""
    return np.asarray(resize(img, side, how), dtype=np.float32) / np.float32(255)


def resize(img: Image.Image, side: int, how: Literal["squash", "crop"]) -> Image.Image:
    """A picture as a square of `side` pixels; see `PreprocessConfig.resize`."""
    box = _centre_square(img.size) if how == "crop" else None
    return img.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _centre_square(size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
