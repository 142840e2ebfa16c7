"""The listing of a source: every entry on disk, cut into parts whose keys say what they hold.

    GALLERY/.build/listing/NNNNNN-<key>.jsonl    one entry a line

A source is listed anew by every run, in a thread that runs ahead of the decoding. The key of a part
is a hash over its lines and over everything else that its bytes depend on, so a part that an
earlier run finished is the one wanted if, and only if, its key is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from index_builder.content import Location, Stamp
from index_builder.manifest import ShardInfo
from index_builder.sources.entry import Candidate, Skip


@dataclass(frozen=True)
class Entry:
    """One line of a listing.

    Attributes:
        value: what the source says.
        rows: of an entry that has not changed, its rows in the published version.
        old_rows: of one that may have changed, its rows there: they stay if it cannot be read.
    """

    value: Candidate | Skip
    rows: tuple[int, ...] = ()
    old_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class PartSpec:
    """A part to be built.

    Attributes:
        number: its place in the source, from 0.
        key: hex digest of all that its bytes depend on.
        path: the file that lists its entries.
        num_entries: how many they are, at least 1.
    """

    number: int
    key: str
    path: Path
    num_entries: int

    @property
    def name(self) -> str:
        """Name of the finished part's folder."""
        return f"{self.number:06d}-{self.key[:16]}"


class Listing:
    """Writes the listing of a source, part by part.

    Attributes:
        num_entries: entries of the parts wanted, so far.
        num_parts: parts of the whole source, so far.
    """

    def __init__(
        self, entries: Iterator[Entry], folder: Path, *, part_items: int, key: str
    ) -> None:
        """Take entries; `folder` is there and empty, `key` is mixed into the key of each part."""
        self._entries = entries
        self._folder = folder
        self._part_items = part_items
        self._key = key
        self._digest = hashlib.sha256(f"{part_items}\n".encode())
        self.num_entries = 0
        self.num_parts = 0

    def parts(
        self,
        *,
        wanted: Callable[[int], bool] = lambda _: True,
        finished: Callable[[int], object] = lambda _: None,
    ) -> Iterator[PartSpec]:
        """List the source; gives each part as soon as its entries are on disk.

        Args:
            wanted: whether a part of this number is to be built here.
            finished: called with the number of entries once the source is exhausted.
        """
        while entries := list(islice(self._entries, self._part_items)):
            number = self.num_parts
            self.num_parts += 1
            for entry in entries:
                self._digest.update(json.dumps(entry.value.id).encode("ascii") + b"\n")
            if wanted(number):
                self.num_entries += len(entries)
                yield self._write(number, entries)
        finished(self.num_entries)

    @property
    def sha256(self) -> str:
        """Hash of how the source was cut so far, all parts: the ids in order, and the part size."""
        return self._digest.hexdigest()

    def _write(self, number: int, entries: list[Entry]) -> PartSpec:
        data = b"".join(_to_line(entry) for entry in entries)
        key = hashlib.sha256(self._key.encode() + b"\n" + data).hexdigest()
        path = self._folder / f"{number:06d}-{key[:16]}.jsonl"  # no other run writes to this one
        path.write_bytes(data)
        return PartSpec(number, key, path, len(entries))


def share(shard: tuple[int, int] | None) -> Callable[[int], bool]:
    """Whether a part falls to a shard `(i, n)`: every n-th from the i-th on; `None` has all."""
    if shard is None:
        return lambda _: True
    number, of = shard
    return lambda part: part % of == number


def shard_info(shard: tuple[int, int] | None, listing_sha256: str) -> ShardInfo | None:
    """What the manifest says of a shard."""
    if shard is None:
        return None
    return ShardInfo(of=shard[1], numbers=(shard[0],), listing_sha256=listing_sha256)


def read_listing(path: Path) -> Iterator[Entry]:
    """The entries of a part, in order."""
    with path.open("rb") as lines:
        for line in lines:
            yield _of_line(json.loads(line))


def plain(entries: Iterable[Candidate | Skip]) -> Iterator[Entry]:
    """Entries that are all to be embedded."""
    return (Entry(value) for value in entries)


def _to_line(entry: Entry) -> bytes:
    value = entry.value
    if isinstance(value, Skip):
        fields: dict[str, Any] = {"skip": asdict(value)}
    else:
        fields = dict(vars(value)) | {
            "location": vars(value.location),
            "stamp": vars(value.stamp) if value.stamp else None,
            "rows": entry.rows,
            "old_rows": entry.old_rows,
        }
    return json.dumps(fields, sort_keys=True).encode("ascii") + b"\n"


def _of_line(fields: dict[str, Any]) -> Entry:
    if "skip" in fields:
        return Entry(Skip(**fields["skip"]))
    rows, old_rows = tuple(fields.pop("rows")), tuple(fields.pop("old_rows"))
    location, stamp = Location(**fields.pop("location")), fields.pop("stamp")
    value = Candidate(**fields, location=location, stamp=Stamp(**stamp) if stamp else None)
    return Entry(value, rows, old_rows)
