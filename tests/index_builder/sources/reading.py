"""Short ways to list a source."""

import io
import tarfile
from pathlib import Path

from index_builder.sources.entry import Candidate, Skip
from index_builder.sources.open import open_source


def entries_of(*arguments, **options):
    return list(open_source([str(argument) for argument in arguments], **options).read())


def read(*arguments, **options):
    """Candidates by id, reasons of skips by id, and the counts."""
    source = open_source([str(argument) for argument in arguments], **options)
    entries = list(source.read())
    candidates = {entry.id: entry for entry in entries if isinstance(entry, Candidate)}
    skips = {entry.id: entry.reason for entry in entries if isinstance(entry, Skip)}
    assert len(candidates) + len(skips) == len(entries)
    return candidates, skips, source.counts


def write_tar(path: Path, members) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return path
