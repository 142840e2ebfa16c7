"""What an export is asked to do, and what it reports."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cots_model.errors import InputError

IndexType = Literal["flat", "hnsw", "ivf_flat"]
INDEX_TYPES: tuple[IndexType, ...] = ("flat", "hnsw", "ivf_flat")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export.

    Attributes:
        gallery: the local gallery.
        to: url of the collection; see `address`.
        target: the folder to publish the new gallery into.
        index: `flat` is exact; `hnsw` and `ivf_flat` are Milvus's approximate ones.
        replace: drop a collection of that name that is not this gallery's.
        keep_versions: how many versions of `target` stay, the new one included.
    """

    gallery: Path
    to: str
    target: Path
    index: IndexType = "flat"
    replace: bool = False
    keep_versions: int = 2

    def __post_init__(self) -> None:
        """Check the values."""
        if self.index not in INDEX_TYPES:
            raise InputError(f"unknown index {self.index!r}; accepted: {', '.join(INDEX_TYPES)}")
        if os.path.realpath(self.gallery) == os.path.realpath(self.target):
            raise InputError(f"{self.target} is the gallery to export; give a folder of its own")


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        gallery: the folder of the new gallery.
        version: the version published there.
        collection: url of the collection.
        count: rows in it.
        written: rows sent by this run; fewer than `count` if it continued another.
        fingerprint: of the content, as read back.
        seconds: the whole export.
    """

    gallery: str
    version: str
    collection: str
    count: int
    written: int
    fingerprint: str
    seconds: float
