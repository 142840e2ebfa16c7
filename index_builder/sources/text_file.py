"""Texts from `.txt` files, one per line; ids are `NAME#00000001`, by the line's number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from index_builder.location import Location, Stamp, name_of, uri_of
from index_builder.sources.entry import Candidate, ReaderCounts, Skip
from index_builder.sources.manifest import row_id
from index_builder.sources.places import open_place
from index_builder.sources.texts import MAX_TEXT_BYTES, as_text

_BLOCK_BYTES = 4 * 1024 * 1024


class LineSource:
    """The lines of text files; empty ones are ignored and counted."""

    def __init__(self, files: Sequence[str]) -> None:
        """Take files, absolute paths or urls, which are read in the order given."""
        self._files = tuple(files)
        self.name = ", ".join(files)
        self.counts = ReaderCounts(unit="line")

    @property
    def roots(self) -> tuple[str, ...]:
        """The files."""
        return self._files

    def read(self) -> Iterator[Candidate | Skip]:
        """Every line.

        Raises:
            ContentError: if a file cannot be read.
        """
        for file in self._files:
            handle, stamp = open_place(file, block_bytes=_BLOCK_BYTES)
            known = stamp if stamp.mtime_s else None
            with handle:
                number = 0
                while line := handle.readline(MAX_TEXT_BYTES + 2):
                    number += 1
                    whole = line.endswith(b"\n")
                    if line.strip():
                        yield _entry(file, number, line, known)
                    else:
                        self.counts.ignored += 1
                    while not whole and (more := handle.readline(MAX_TEXT_BYTES)):
                        whole = more.endswith(b"\n")


def _entry(file: str, number: int, line: bytes, stamp: Stamp | None) -> Candidate | Skip:
    entry_id = row_id(file, number)
    entry = Candidate(entry_id, uri_of(file), Location(file), name_of(file), stamp=stamp)
    return as_text(entry, line)
