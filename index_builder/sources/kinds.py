"""The three kinds of items, and by which endings their files are known."""

from __future__ import annotations

from dataclasses import dataclass

from cots_model.errors import InputError
from cots_model.videos import VIDEO_SUFFIXES
from index_builder.manifest import Modality
from index_builder.sources.entry import IMAGE_SUFFIXES, UNREAD_IMAGE_SUFFIXES

UNREAD_VIDEO_SUFFIXES = frozenset(
    [".wmv", ".asf", ".mts", ".m2ts", ".vob", ".ogv", ".rm", ".rmvb", ".3g2", ".mxf"]
)
TEXT_SUFFIXES = frozenset([".txt"])


@dataclass(frozen=True)
class Kind:
    """What a source looks for.

    Attributes:
        modality: what the gallery will hold.
        noun: what one item is called.
        suffixes: endings of files that are items.
        unread: endings of files that would be items but cannot be read.
        sidecars: endings of files beside an item that say something of it.
        save_as: what files that cannot be read should be saved as.
    """

    modality: Modality
    noun: str
    suffixes: frozenset[str]
    unread: frozenset[str]
    sidecars: frozenset[str]
    save_as: str


_SIDECARS = frozenset([".json", ".txt", ".cls"])
_KINDS: dict[str, Kind] = {
    "image": Kind(
        "image",
        "picture",
        IMAGE_SUFFIXES,
        UNREAD_IMAGE_SUFFIXES,
        _SIDECARS,
        "JPEG, PNG or WebP",
    ),
    "video": Kind("video", "video", VIDEO_SUFFIXES, UNREAD_VIDEO_SUFFIXES, _SIDECARS, "MP4"),
    "text": Kind("text", "text", TEXT_SUFFIXES, frozenset(), frozenset([".json"]), "UTF-8"),
}


def kind_of(modality: str) -> Kind:
    """The kind of a modality.

    Raises:
        InputError: for an unknown one.
    """
    if modality not in _KINDS:
        raise InputError(f"the modality is {modality!r}; accepted: {', '.join(_KINDS)}")
    return _KINDS[modality]
