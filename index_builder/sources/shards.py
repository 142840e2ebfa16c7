"""Pictures in tar shards, as webdataset and img2dataset write them.

Neighbouring members whose path is the same up to the first dot of the file name are one sample:
`00012.jpg`, `00012.json`, `00012.txt`. The item's id is that key. Where a sample has several
pictures, each takes its whole member name as id. Pictures are read later by their byte range, so
the shard is never unpacked.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from index_builder.content import Location, file_uri
from index_builder.items import Json
from index_builder.sources.entry import (
    IMAGE_SUFFIXES,
    SIDECAR_SUFFIXES,
    UNREAD_IMAGE_SUFFIXES,
    Candidate,
    ReaderCounts,
    Skip,
    has_suffix,
    read_sidecar,
)

# Sizes and numbers of a hostile header overflow (ValueError, OverflowError) or nest without end.
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError)


class ShardSource:
    """All pictures in uncompressed tar files, shard by shard."""

    def __init__(self, shards: Sequence[Path]) -> None:
        """Take shards, which are read in the order given."""
        self._shards = [os.path.abspath(path) for path in shards]
        self.name = ", ".join(self._shards)
        self.counts = ReaderCounts()

    @property
    def shards(self) -> list[Path]:
        """The shards, absolute, in the order they are read."""
        return [Path(shard) for shard in self._shards]

    @property
    def roots(self) -> tuple[str, ...]:
        """The shards."""
        return tuple(self._shards)

    def read(self) -> Iterator[Candidate | Skip]:
        """Every picture, in the order of the shards; a damaged shard ends where the damage is."""
        for shard in self._shards:
            try:
                with tarfile.open(shard, "r:") as archive:
                    for _, sample in groupby(self._members(archive), key=_key):
                        yield from self._sample(shard, list(sample))
                    _check_end(archive)
            except _DAMAGE as err:
                why = f"the shard cannot be read any further ({err}); copy or write it again"
                yield Skip(os.path.basename(shard), file_uri(shard), "damaged_shard", why)

    def _members(self, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            if member.size < 0:  # tarfile would go back and read the same members for ever
                raise tarfile.ReadError(f"a member claims {member.size} bytes")
            if member.isdir():
                continue
            if member.isreg() and not member.issparse() and not _is_hidden(member.name):
                yield member
            else:
                self.counts.ignored += 1

    def _sample(self, shard: str, members: list[tarfile.TarInfo]) -> Iterator[Candidate | Skip]:
        pictures = [m for m in members if has_suffix(m.name, IMAGE_SUFFIXES)]
        sidecars = [m for m in members if has_suffix(m.name, SIDECAR_SUFFIXES)] if pictures else []
        metadata: dict[str, Json] = {}
        for member in sorted(sidecars, key=lambda m: m.name, reverse=True):
            location = _location(shard, member)
            metadata.update(read_sidecar(location, _utf8(member.name), self.counts))
        for member in members:
            name = _utf8(member.name)
            uri = file_uri(shard, member.name)
            if member in pictures:
                item_id = _utf8(_key(member)) if len(pictures) == 1 else name
                filename = os.path.basename(name)
                yield Candidate(item_id, uri, _location(shard, member), filename, metadata)
            elif has_suffix(member.name, UNREAD_IMAGE_SUFFIXES):
                why = "pictures of this kind are not read; save it as JPEG, PNG or WebP"
                yield Skip(name, uri, "unsupported_format", why)
            elif member not in sidecars:
                self.counts.ignored += 1


def _check_end(archive: tarfile.TarFile) -> None:
    """Tell the end of a shard from a damaged header, which tarfile takes for the end too.

    Raises:
        ReadError: if something else than zeros, or a part of a block, stands where it stopped.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) % tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {archive.offset:,}")


def _key(member: tarfile.TarInfo) -> str:
    folder, name = os.path.split(member.name.removeprefix("./"))
    return os.path.join(folder, name.split(".", 1)[0])


def _location(shard: str, member: tarfile.TarInfo) -> Location:
    return Location(shard, member.offset_data, member.size)


def _is_hidden(name: str) -> bool:
    return os.path.basename(name).startswith(".")


def _utf8(name: str) -> str:
    return name.removeprefix("./").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
