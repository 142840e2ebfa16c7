"""What happens to the entries of a source before they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from index_builder.sources.entry import Candidate, Skip
from index_builder.sources.metadata_file import MetadataFile


def with_metadata(
    entries: Iterator[Candidate | Skip], metadata: MetadataFile | None
) -> Iterator[Candidate | Skip]:
    """Lay the metadata file's columns over what the sidecars say."""
    for entry in entries:
        if metadata is not None and isinstance(entry, Candidate):
            merged = {**entry.metadata, **metadata.row_of(entry)}
            yield replace(entry, metadata=merged)
        else:
            yield entry
