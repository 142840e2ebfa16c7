"""Captions of one or two words, taken from longer ones (chosen).

People describe a photo in a sentence and search for it with a word. A model that has only seen
words under drawings ("a cat") and sentences under photos finds drawings for every word.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from training.example import Example

_WORDS = re.compile(r"[a-z]+(?:-[a-z]+)*")
_TWO_WORDS, _ARTICLE = 1 / 3, 1 / 2  # how often
_EMPTY = re.compile(  # words that say nothing about a picture by themselves
    "an?|and|another|are|as|at|be|been|being|by|down|for|from|he|her|his|in|into|is|it|its|near|next|"
    "off?|one?|onto|other|out|over|she|some|that|the|their|there|they|this|three|through|to|two|up|"
    "very|was|were|which|while|who|with"
)


def with_short_captions(example: Example, count: int) -> Example:
    """The example with at most `count` short captions of its English ones, always the same.

    Captions with letters beyond a to z are taken for another language.
    """
    captions = [caption for caption in example.captions if caption.isascii()]
    if not count or not captions:
        return example
    said = "\n".join((example.id, *example.captions)).encode()
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(said).digest()[:8], "little"))
    made = dict.fromkeys(_shortened(captions, rng) for _ in range(count))
    return replace(example, captions=(*example.captions, *(text for text in made if text)))


def _shortened(captions: Sequence[str], rng: np.random.Generator) -> str:
    """Words of a random caption in their order; empty if it has none that say something."""
    caption = captions[int(rng.integers(len(captions)))]
    words = [w for w in _WORDS.findall(caption.lower()) if len(w) > 2 and not _EMPTY.fullmatch(w)]
    if not words:
        return ""
    num_words = min(2 if rng.random() < _TWO_WORDS else 1, len(words))
    places = sorted(rng.choice(len(words), num_words, replace=False).tolist())
    text = " ".join(words[place] for place in places)
    return f"a {text}" if rng.random() < _ARTICLE else text
