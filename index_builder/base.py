"""What a build starts from: nothing, or for an update the published version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from index_builder.join import Piece
from index_builder.listing import Entry, plain
from index_builder.manifest import Manifest
from index_builder.sources.entry import Candidate, Skip


class Base:
    """The published version that an update starts from; of a build there is none.

    Attributes:
        folder: of the version.
        manifest: of the version.
        sha256: of its manifest.
        excluded: ids that stay out.
        remove_missing: whether rows go whose original is gone.
    """

    folder: Path | None = None
    manifest: Manifest | None = None
    sha256: str | None = None
    excluded: frozenset[str] = frozenset()
    remove_missing: bool = False

    def mark(self, entries: Iterator[Candidate | Skip]) -> Iterator[Entry]:
        """Say of each entry which rows still hold for it."""
        return plain(entries)

    def leftover(self) -> list[Piece]:
        """Rows to be taken over that no entry was listed for."""
        return []
