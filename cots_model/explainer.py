"""A checkpoint that is asked why: of a text, or of each of its words.

    explainer = Explainer.load("cots-mini")
    explainer(img, "a dog in snow").patch_hw
    explainer.words(img, "a dog in snow").words[1].level_hw

Shape letters: h and w patches, L tokens, W words.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from tokenizers import Encoding
from torch import Tensor, nn

from cots_model import checkpoint
from cots_model.encoder import Encoder, resolve_device
from cots_model.errors import InputError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess, squared, without_surrogates
from cots_model.relevance import explain, explain_words, never, num_layers

_HOT = np.array([[0, 0, 96], [190, 30, 90], [255, 130, 20], [255, 245, 120]], np.float32)
_JOINS = frozenset("'\u2019\u2010\u2011-")


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


@dataclass(frozen=True)
class WordSpan:
    """A word of a text: from character `start` to before `end`, and the tokens it is cut into."""

    start: int
    end: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class WordMap:
    """Where in a picture one word of a text is.

    Attributes:
        word: as it stands in the text, from character `start` to before `end`.
        similarity: of the picture's vector and the word's.
        level_hw: relevance of the patches, from 0 (the least of this map) to 1 (the most); all 0
            where it is the same everywhere.
    """

    word: str
    start: int
    end: int
    similarity: float
    level_hw: Tensor


@dataclass(frozen=True)
class WordsExplained:
    """The words of one text on one picture.

    Attributes:
        text: as it was given.
        similarity: of the vectors of the whole text and the picture.
        words: in order, without punctuation, as far as the model reads the text.
    """

    text: str
    similarity: float
    words: tuple[WordMap, ...]


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

    @classmethod
    def of(cls, encoder: Encoder) -> Self:
        """Explain what an encoder finds, which goes on meanwhile: only its weights are shared.

        Raises:
            InputError: if it is an ensemble, or computes with int8, which has no gradients.
        """
        check_explainable(encoder)
        return cls(_twin(encoder.model), encoder.text_preprocess)

    def base(self, img: Image.Image) -> Image.Image:
        """What the map lies over, see `seen_part`."""
        return seen_part(self._preprocess, img)

    def __call__(
        self, img: Image.Image, text: str, *, start_layer: int = 0, text_start_layer: int = 0
    ) -> Explained:
        """Explain one text on one picture; see `cots_model.relevance.explain`."""
        text = without_surrogates(text)
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

    def words(
        self,
        img: Image.Image,
        text: str,
        *,
        start_layer: int = 0,
        before_word: Callable[[], object] = never,
    ) -> WordsExplained:
        """Explain each word of one text on one picture; see `words_of`."""
        pixels_CHW = self._preprocess.image(img)
        return self.words_of(pixels_CHW, text, start_layer=start_layer, before_word=before_word)

    def words_of(
        self,
        pixels_CHW: Tensor,
        text: str,
        *,
        start_layer: int = 0,
        before_word: Callable[[], object] = never,
    ) -> WordsExplained:
        """The same of preprocessed pixels; see `cots_model.relevance.explain_words`."""
        text = without_surrogates(text)
        device = next(self._model.parameters()).device
        tok_1L, mask_1L = self._preprocess.text([text])
        spans = self.spans(text)
        word_WL = torch.zeros((len(spans), tok_1L.shape[1]), dtype=torch.bool)
        for place, span in enumerate(spans):
            word_WL[place, list(span.tokens)] = True
        found = explain_words(
            self._model,
            pixels_CHW[None].to(device),
            tok_1L.to(device),
            mask_1L.to(device),
            word_WL.to(device),
            start_layer=start_layer,
            before_word=before_word,
        )
        words = tuple(
            WordMap(text[span.start : span.end], span.start, span.end, similarity, levels(patch_hw))
            for span, similarity, patch_hw in zip(
                spans, found.similarity_W.tolist(), found.patch_Whw.cpu(), strict=True
            )
        )
        return WordsExplained(text, found.similarity, words)

    def spans(self, text: str) -> tuple[WordSpan, ...]:
        """The words of a text that the model reads, without punctuation."""
        return word_spans(self._preprocess, text)

    def _words(self, text: str, token_L: Tensor) -> tuple[tuple[str, float], ...]:
        """Shares of words, each the sum of the tokens it was cut into."""
        spans = _all_spans(text, self._preprocess.tokenizer.encode(text))
        relevance = [float(token_L[list(span.tokens)].sum()) for span in spans]
        total = sum(relevance) or 1.0
        return tuple(
            (text[span.start : span.end], value / total)
            for span, value in zip(spans, relevance, strict=True)
        )


def word_spans(preprocess: Preprocess, text: str) -> tuple[WordSpan, ...]:
    """The words of a text that a model reads, without punctuation."""
    text = without_surrogates(text)
    spans = _all_spans(text, preprocess.tokenizer.encode(text))
    return tuple(span for span in spans if any(map(str.isalnum, text[span.start : span.end])))


def _all_spans(text: str, encoding: Encoding) -> list[WordSpan]:
    """Words and punctuation of a text, in order.

    What a tokenizer cuts and a reader does not is one word: `dog's`, `black-and-white`.
    """
    tokens: dict[int, list[int]] = {}
    for token, word in enumerate(encoding.word_ids):
        if word is not None:
            tokens.setdefault(word, []).append(token)
    alone = [_stripped(text, encoding.offsets, of_word) for of_word in tokens.values()]
    spans: list[WordSpan] = []
    starts = [*(span.start for span in alone), len(text)]
    for span, next_start in zip(alone, starts[1:], strict=True):
        whole = replace(span, end=_after_marks(text, span.end, next_start))
        if spans and spans[-1].end == span.start and _is_within_a_word(text, span.start):
            before = spans.pop()
            whole = replace(whole, start=before.start, tokens=(*before.tokens, *whole.tokens))
        spans.append(whole)
    if spans:
        spans[-1] = _without_loose_end(text, spans[-1])
    return spans


def _after_marks(text: str, place: int, end: int) -> int:
    """Some tokenizers leave out the marks on the letter before."""
    while place < end and unicodedata.category(text[place])[0] == "M":
        place += 1
    return place


def _without_loose_end(text: str, span: WordSpan) -> WordSpan:
    """Where a text is cut, the rest of a compound is missing and its hyphen need not be shown."""
    word = text[span.start : span.end]
    shown = word.rstrip("".join(_JOINS)) or word
    return replace(span, end=span.start + len(shown))


def _stripped(text: str, offsets: Sequence[tuple[int, int]], tokens: Sequence[int]) -> WordSpan:
    """Some tokenizers take the space before a word for a part of it."""
    start, end = offsets[tokens[0]][0], offsets[tokens[-1]][1]
    word = text[start:end]
    start += len(word) - len(word.lstrip())
    return WordSpan(start, max(start, end - (len(word) - len(word.rstrip()))), tokens)


def _is_within_a_word(text: str, place: int) -> bool:
    """Whether an apostrophe or a hyphen between two letters is beside this place."""
    return any(
        text[at] in _JOINS and _is_letter(text[at - 1]) and _is_letter(text[at + 1])
        for at in (place - 1, place)
        if 0 < at < len(text) - 1
    )


def _is_letter(char: str) -> bool:
    """Of a word in a script that has spaces between words: a letter, a mark on one, a digit."""
    has_spaces = ord(char) < 0x0E00 or 0x1E00 <= ord(char) < 0x2000  # before Thai; Latin, Greek
    return has_spaces and unicodedata.category(char)[0] in "LMN"


def check_explainable(encoder: Encoder) -> int:
    """Refuse what no picture and no text could mend.

    Returns:
        How many layers of the image tower a map can start at.

    Raises:
        InputError: if the encoder is an ensemble, computes with int8, which has no gradients, or
            has no class token that attends patches.
    """
    if encoder.precision == "int8":
        raise InputError("there are no maps of a model in int8; use float32 or bfloat16")
    return num_layers(encoder.model)


def seen_part(preprocess: Preprocess, img: Image.Image) -> Image.Image:
    """The whole picture if the model sees all of it, else the part that it sees."""
    config = preprocess.config
    if config.resize == "squash":
        return img
    pixels_HWC = squared(img, config.image_size, config.resize)
    return Image.fromarray((pixels_HWC * 255).astype(np.uint8))


def _twin(model: CotsModel) -> CotsModel:
    """The same weights in modules of their own, whose hooks and settings nobody else sees."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach()) for parameter in model.parameters()
    }
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo).eval()


def levels(patch_hw: Tensor) -> Tensor:
    """A map from 0 to 1, float32."""
    low, high = patch_hw.min(), patch_hw.max()
    return ((patch_hw - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).to(torch.float32)


def heated(photo: Image.Image, patch_hw: Tensor) -> Image.Image:
    """The picture under a map, from dark to bright."""
    level = Image.fromarray(levels(patch_hw).numpy()).resize(photo.size, Image.Resampling.BICUBIC)
    level_HW = np.clip(np.asarray(level), 0, 1)
    stops = np.linspace(0, 1, len(_HOT))
    heat = np.stack([np.interp(level_HW, stops, _HOT[:, c]) for c in range(3)], axis=-1)
    mixed = np.asarray(photo, np.float32) * 0.45 + heat * 0.55
    return Image.fromarray(mixed.astype(np.uint8))
