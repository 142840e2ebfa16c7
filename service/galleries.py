"""The galleries of one root folder, by name.

A gallery that cannot be opened does not take down the others: it is remembered with its reason,
answers 503 itself, and is named by `/readyz`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cots_model.errors import GalleryError
from index_builder.gallery import Gallery
from service.errors import ApiError
from service.root import find_galleries

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registry:
    """What was found under the root.

    Attributes:
        loaded: galleries that answer.
        refused: why each of the others does not.
    """

    loaded: Mapping[str, Gallery] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path, *, expected_fingerprint: str, device: str = "auto") -> Registry:
        """Open every gallery under `root`, to be searched on `device`.

        Raises:
            InputError: if `root` is missing, is itself a gallery, or holds none.
            CotsError: if an index cannot be on the device asked for.
            GalleryError: if not one gallery can be opened.
        """
        loaded: dict[str, Gallery] = {}
        refused: dict[str, str] = {}
        for folder in find_galleries(root):
            try:
                loaded[folder.name] = Gallery.open(
                    folder, expected_fingerprint=expected_fingerprint, device=device
                )
            except GalleryError as err:
                refused[folder.name] = str(err)
                log.exception("gallery refused", extra={"gallery": folder.name})
        if not loaded:
            raise GalleryError("no gallery could be opened: " + "; ".join(refused.values()))
        return cls(loaded, refused)

    def get(self, name: str) -> Gallery:
        """The gallery called `name`.

        Raises:
            ApiError: 404 for an unknown name, 503 for a gallery that was refused.
        """
        if name in self.loaded:
            return self.loaded[name]
        if name in self.refused:
            message = f"gallery {name!r} is damaged and not served; see the server's log"
            raise ApiError(503, "gallery_unavailable", message, param="gallery")
        message = f"no gallery {name!r}; GET /v1/galleries lists those there are"
        raise ApiError(404, "gallery_not_found", message, param="gallery")

    def reasons(self) -> list[str]:
        """One line for every gallery that is not served, without paths of this machine."""
        return [f"gallery {name!r} could not be loaded" for name in sorted(self.refused)]
