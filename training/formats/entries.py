"""What an annotation file says, before it is known where the pictures lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture or video that an annotation file names.

    Attributes:
        id: its id.
        file: its file's name, absolute or relative to the image root.
        captions: stripped, none of them empty; there may be none.
    """

    id: str
    file: str
    captions: tuple[str, ...]


def clean_captions(values: Iterable[object]) -> tuple[str, ...]:
    """The strings among the values that say something, without the space around them."""
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def grouped(pairs: Iterable[tuple[str, Iterable[object]]]) -> list[Entry]:
    """One entry per file, in the order of first mention, with the captions of all its mentions."""
    found: dict[str, list[str]] = {}
    for file, captions in pairs:
        found.setdefault(file, []).extend(clean_captions(captions))
    return [Entry(file, file, tuple(captions)) for file, captions in found.items()]
