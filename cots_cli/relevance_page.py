"""Pictures with the maps of texts on them, for `cots explain`.

Shape letters: h and w patches, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cots_model import checkpoint
from cots_model.encoder import resolve_device
from cots_model.errors import InputError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess, squared
from cots_model.relevance import explain

_HEIGHT, _MAX_WIDTH, _MARGIN, _FONT_SIZE = 320, 960, 12, 15  # a panorama is squashed
_LINE = 22
_HOT = np.array([[0, 0, 96], [190, 30, 90], [255, 130, 20], [255, 245, 120]], np.float32)


@dataclass(frozen=True)
class Explained:
    """One text on one picture.

    Attributes:
        text: as it was given.
        similarity: of the two vectors.
        words: of the text, special tokens left out, with their shares of the relevance.
        patch_hw: relevance of the patches.
    """

    text: str
    similarity: float
    words: tuple[tuple[str, float], ...]
    patch_hw: Tensor


class Explainer:
    """A checkpoint that is asked why."""

    def __init__(self, model: CotsModel, preprocess: Preprocess) -> None:
        """Take a model in evaluation mode and its preprocessing."""
        self._model, self._preprocess = model, preprocess

    @classmethod
    def load(cls, source: str, *, device: str = "auto") -> Self:
        """Load a checkpoint.

        Raises:
            CheckpointError: if it is missing or damaged.
            InputError: if it is an ensemble, or the device does not exist.
        """
        folder = checkpoint.locate(source)
        if checkpoint.is_ensemble(folder):
            raise InputError(f"{folder} is an ensemble; explain its members one by one")
        model = CotsModel.from_pretrained(folder, device=resolve_device(device))
        return cls(model, Preprocess.from_pretrained(folder))

    def base(self, img: Image.Image) -> Image.Image:
        """What the map lies over: the whole picture if the model sees all of it, else its part."""
        config = self._preprocess.config
        if config.resize == "squash":
            return img
        pixels_HWC = squared(img, config.image_size, config.resize)
        return Image.fromarray((pixels_HWC * 255).astype(np.uint8))

    def __call__(
        self, img: Image.Image, text: str, *, start_layer: int = 0, text_start_layer: int = 0
    ) -> Explained:
        """Explain one text on one picture; see `cots_model.relevance.explain`."""
        text = text.encode("utf-8", "replace").decode()  # no lone surrogates
        device = next(self._model.parameters()).device
        tok_1L, mask_1L = self._preprocess.text([text])
        pixels = self._preprocess.images([img]).to(device)
        found = explain(
            self._model,
            pixels,
            tok_1L.to(device),
            mask_1L.to(device),
            start_layer=start_layer,
            text_start_layer=text_start_layer,
        )
        from_attention_L = (found.token_L.cpu() - 1 / int(mask_1L.sum())).clamp(min=0)
        words = self._words(text, from_attention_L)
        return Explained(text, found.similarity, words, found.patch_hw.cpu())

    def _words(self, text: str, token_L: Tensor) -> tuple[tuple[str, float], ...]:
        """Shares of words, each the sum of the tokens it was cut into."""
        encoding = self._preprocess.tokenizer.encode(text)
        relevance: dict[int, float] = {}
        spans: dict[int, list[tuple[int, int]]] = {}
        for word, span, value in zip(
            encoding.word_ids, encoding.offsets, token_L.tolist(), strict=True
        ):
            if word is not None:
                relevance[word] = relevance.get(word, 0.0) + value
                spans.setdefault(word, []).append(span)
        total = sum(relevance.values()) or 1.0
        return tuple(
            (text[spans[word][0][0] : spans[word][-1][1]], value / total)
            for word, value in relevance.items()
        )


def draw(base: Image.Image, found: Sequence[Explained]) -> Image.Image:
    """The picture, and beside it once more for each text, under a map from dark to bright."""
    width = min(round(base.width * _HEIGHT / base.height), _MAX_WIDTH)
    photo = base.convert("RGB").resize((max(1, width), _HEIGHT))
    step = max(photo.width, 220) + _MARGIN
    size = (step * (len(found) + 1) + _MARGIN, _HEIGHT + 2 * _MARGIN + 2 * _LINE)
    sheet = Image.new("RGB", size, "white")
    sheet.paste(photo, (_MARGIN, _MARGIN))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for place, one in enumerate(found, start=1):
        left, top = _MARGIN + place * step, _HEIGHT + _MARGIN + 4
        sheet.paste(_heated(photo, one.patch_hw), (left, _MARGIN))
        pen.text((left, top), _shortened(one.text, font, step - _MARGIN), "black", font=font)
        words = " ".join(f"{word} {share:.0%}" for word, share in one.words)
        line = f"{one.similarity:.3f}  {words}"
        pen.text((left, top + _LINE), _shortened(line, font, step - _MARGIN), "gray", font=font)
    return sheet


def _heated(photo: Image.Image, patch_hw: Tensor) -> Image.Image:
    low, high = patch_hw.min(), patch_hw.max()
    level_hw = ((patch_hw - low) / (high - low).clamp(min=1e-12)).to(torch.float32).numpy()
    level = Image.fromarray(level_hw).resize(photo.size, Image.Resampling.BICUBIC)
    level_HW = np.clip(np.asarray(level), 0, 1)
    stops = np.linspace(0, 1, len(_HOT))
    heat = np.stack([np.interp(level_HW, stops, _HOT[:, c]) for c in range(3)], axis=-1)
    mixed = np.asarray(photo, np.float32) * 0.45 + heat * 0.55
    return Image.fromarray(mixed.astype(np.uint8))


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
