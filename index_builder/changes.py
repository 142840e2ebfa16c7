"""What a source lists now, beside the published version: new, changed, unchanged, gone.

Shape letters: N rows of the published version.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np

from index_builder.base import Base
from index_builder.content import ContentError, open_location
from index_builder.encode import refreshed_item
from index_builder.item_join import read_column
from index_builder.items import Item
from index_builder.join import Piece
from index_builder.listing import Entry
from index_builder.location import is_url, lies_in, place_of
from index_builder.manifest import ITEMS_FILE, SKIPPED_FILE, Manifest
from index_builder.options import Changes, Compare, UpdateOptions
from index_builder.parts import read_skips
from index_builder.presence import GONE, OUT_OF_REACH, is_out_of_reach
from index_builder.sources.entry import Candidate, Skip
from index_builder.version import VersionRows

_LAST_PLACE = 2**62

_State = Literal["new", "changed", "unchanged", "retried", "unreadable", "gone"]


class PublishedBase(Base):
    """The published version, compared with what the source lists.

    Attributes:
        remove_missing: whether items go whose original is gone.
        source_roots: where the source is that is listed now.
        manifest: of the version.
    """

    manifest: Manifest

    def __init__(self, rows: VersionRows, sha256: str, options: UpdateOptions) -> None:
        """Take a version, and what an unchanged entry is."""
        self._rows = rows
        self._compare: Compare = options.compare
        self.remove_missing = options.remove_missing
        self._listed_N = np.zeros(rows.manifest.count, bool)
        self._out_of_reach: set[str] = set()
        self._gone_rows: list[int] = []
        self._counts: Counter[_State] = Counter()
        self._touched = 0
        self._deleted = 0
        self.source_roots: tuple[str, ...] = ()
        self.folder = rows.folder
        self.manifest = rows.manifest
        self.sha256 = sha256
        self.excluded = frozenset() if options.restore_deleted else frozenset(rows.excluded())
        self._skipped = self._skipped_entries()
        self._retried = self._to_be_retried()

    def mark(self, entries: Iterator[Candidate | Skip]) -> Iterator[Entry]:
        """Give unchanged entries their rows, and leave deleted ones out."""
        for value in entries:
            if isinstance(value, Skip):
                if value.reason in OUT_OF_REACH or value.reason == "damaged_shard":
                    self._out_of_reach.add(value.uri)
                yield Entry(value)
            elif value.id in self.excluded:
                self._deleted += 1
            else:
                yield self._entry(value)

    def leftover(self) -> list[Piece]:
        """The items whose original was not listed, unless they are to be removed."""
        keep_N = ~self._listed_N & (self._held_N | (not self.remove_missing))
        if not keep_N.any():
            return []
        piece = self._rows.piece(place=_LAST_PLACE, keep_N=keep_N)
        return [replace(piece, skips=lambda: iter(()))]

    def changes(self, gone_rows: Iterable[int] = ()) -> Changes:
        """What was found, once all is listed.

        Args:
            gone_rows: rows whose original was listed, and gone when it was to be read.
        """
        gone_N = ~self._listed_N & ~self._held_N
        gone_N[[*self._gone_rows, *gone_rows]] = True
        gone = tuple(self._rows.items.id(row) for row in np.flatnonzero(gone_N).tolist())
        counts = self._counts
        return Changes(
            new=counts["new"],
            changed=counts["changed"],
            unchanged=counts["unchanged"],
            touched=self._touched,
            retried=counts["retried"],
            unreadable=counts["unreadable"],
            missing=len(gone),
            gone=gone,
            deleted=self._deleted,
        )

    def _entry(self, candidate: Candidate) -> Entry:
        rows = self._rows.items.find_entry(candidate.id)
        self._listed_N[rows] = True
        old = self._rows.item(rows[0]) if rows else None
        state = self._state(candidate, old)
        self._counts[state] += 1
        if state == "unchanged":
            assert old is not None
            self._touched += refreshed_item(old, candidate) != old
            return Entry(candidate, rows=tuple(rows))
        if state == "gone":
            self._gone_rows += rows
        return Entry(candidate, old_rows=tuple(rows))

    def _state(self, candidate: Candidate, old: Item | None) -> _State:
        """How an entry is beside the first of its items."""
        if candidate.id in self._retried or (old is None and candidate.id in self._skipped):
            return "retried"
        if old is None:
            return "new"
        if candidate.text is not None:
            return "unchanged" if candidate.text == old.text else "changed"
        place = (candidate.uri, candidate.location.offset_bytes)
        stamp = candidate.stamp if place == (old.uri, old.offset_bytes) else None
        if self._compare == "stamp" and stamp is not None and stamp.mtime_s:
            same = (stamp.size_bytes, stamp.mtime_s) == (old.size_bytes, old.mtime_s)
            return "unchanged" if same else "changed"
        return _compare_content(candidate, old)

    @cached_property
    def _held_N(self) -> np.ndarray:
        """Unlisted rows that may well be there, where the listing did not look; once it is done."""
        held_N = np.zeros(len(self._listed_N), bool)
        rows = np.flatnonzero(~self._listed_N)
        if len(rows):
            uris = read_column([self._rows.folder / ITEMS_FILE], "uri").take(rows).to_pylist()
            held_N[rows] = [
                self._lies_out_of_reach(uri) or self._is_of_another_source(uri) for uri in uris
            ]
        return held_N

    def _is_of_another_source(self, uri: str) -> bool:
        """Whether an original lies elsewhere and is there, as in a gallery that was merged."""
        place = place_of(uri)
        if any(lies_in(place, root) for root in self.source_roots):
            return False
        return is_url(place) or os.path.exists(place)

    def _lies_out_of_reach(self, uri: str) -> bool:
        while uri and uri not in self._out_of_reach:
            uri = uri[: max(uri.rfind("/"), uri.rfind("#"), 0)]
        return bool(uri)

    def _skipped_entries(self) -> frozenset[str]:
        """Entries that were skipped, or of which a part was."""
        skips = read_skips(self._rows.folder / SKIPPED_FILE)
        return frozenset(skip.id for skip in skips if skip.reason != "duplicate_id")

    def _to_be_retried(self) -> frozenset[str]:
        """Videos of which a part was skipped, or taken out and is wanted again."""
        if self._rows.manifest.modality != "video":
            return frozenset()
        restored = self._rows.excluded() - self.excluded
        return self._skipped | {item_id.rpartition("#t=")[0] for item_id in restored}


def _compare_content(candidate: Candidate, old: Item) -> _State:
    """By the bytes of the original; if it cannot be read, decoding will say why."""
    try:
        handle, _ = open_location(candidate.location)
        with handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]
    except ContentError as err:
        if err.reason in GONE:
            return "gone"
        skip = Skip(candidate.id, candidate.uri, err.reason, str(err))
        return "unreadable" if is_out_of_reach(candidate, skip) else "changed"
    except OSError:
        return "unreadable"
    return "unchanged" if sha256 == old.sha256 else "changed"
