"""Pictures, videos or captions in tar shards, as webdataset and img2dataset write them.

Neighbouring members whose path is the same up to the first dot of the file name are one sample:
`00012.jpg`, `00012.json`, `00012.txt`. The item's id is that key. Where a sample has several
pictures, each takes its whole member name as id. Pictures are read later by their byte range, so
the shard is never unpacked; of a shard at a url, only the headers and sidecars are read here.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from cots_model.errors import CotsError, InputError
from index_builder.items import Json
from index_builder.location import ContentError, Location, Stamp, is_url, name_of, uri_of
from index_builder.manifest import Modality
from index_builder.sources.entry import Candidate, ReaderCounts, Skip, has_suffix
from index_builder.sources.kinds import kind_of
from index_builder.sources.places import open_place
from index_builder.sources.sidecars import MAX_SIDECAR_BYTES, read_sidecar
from index_builder.sources.texts import caption_entries, without_text

HEADER_BLOCK_BYTES = 64 * 1024
"""How much of a shard at a url is asked for at once: a header, and the small members after it."""

_MAX_HEADER_BYTES = 1024 * 1024
_DESCRIBING = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

# Sizes and numbers of a hostile header overflow (ValueError, OverflowError) or nest without end.
DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError)


class ShardSource:
    """All items of a kind in uncompressed tar files, shard by shard."""

    def __init__(self, shards: Sequence[Path | str], *, modality: Modality = "image") -> None:
        """Take shards, paths or urls, which are read in the order given."""
        places = [str(shard) for shard in shards]
        self._shards = [place if is_url(place) else os.path.abspath(place) for place in places]
        self._kind = kind_of(modality)
        self.name = ", ".join(self._shards)
        self.counts = ReaderCounts()

    @property
    def shards(self) -> list[Path]:
        """The shards, absolute, in the order they are read.

        Raises:
            InputError: if one of them is a url.
        """
        for shard in self._shards:
            if is_url(shard):
                raise InputError(f"{shard} is a url; local shards are accepted here; download it")
        return [Path(shard) for shard in self._shards]

    @property
    def roots(self) -> tuple[str, ...]:
        """The shards."""
        return tuple(self._shards)

    def read(self) -> Iterator[Candidate | Skip]:
        """Every item, in the order of the shards; a damaged shard ends where the damage is.

        Raises:
            CotsError: if a shard at a url cannot be read to its end.
        """
        for shard in self._shards:
            try:
                with open_shard(shard) as (archive, stamp):
                    damage: list[Exception] = []
                    members = _until_damage(self._members(archive), damage)
                    for _, sample in groupby(members, key=_key):
                        yield from self._sample(shard, stamp, archive, list(sample))
                    for err in damage:
                        raise err
                    check_end(archive)
            except ContentError as err:
                raise not_listed(err) from err
            except DAMAGE as err:
                why = f"the shard cannot be read any further ({err}); copy or write it again"
                yield Skip(name_of(shard), uri_of(shard), "damaged_shard", why)

    def _members(self, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        for member in regular_members(archive):
            if member.isreg() and not member.issparse() and not _is_hidden(member.name):
                yield member
            else:
                self.counts.ignored += 1

    def _sample(
        self, shard: str, stamp: Stamp, archive: tarfile.TarFile, members: list[tarfile.TarInfo]
    ) -> Iterator[Candidate | Skip]:
        if self._kind.modality == "text":
            yield from self._captions(shard, stamp, archive, members)
            return
        items = [m for m in members if has_suffix(m.name, self._kind.suffixes)]
        sidecars = [m for m in members if has_suffix(m.name, self._kind.sidecars)] if items else []
        metadata: dict[str, Json] = {}
        for member in sorted(sidecars, key=lambda m: m.name, reverse=True):
            metadata.update(self._sidecar(archive, member))
        for member in members:
            name = utf8(member.name)
            if has_suffix(member.name, self._kind.suffixes):
                entry = _entry(shard, stamp, member)
                item_id = entry.id if len(items) == 1 else name
                yield replace(entry, id=item_id, metadata=metadata)
            elif has_suffix(member.name, self._kind.unread):
                noun, save_as = self._kind.noun, self._kind.save_as
                why = f"{noun}s of this kind are not read; save it as {save_as}"
                yield Skip(name, uri_of(shard, member.name), "unsupported_format", why)
            elif not (items and has_suffix(member.name, self._kind.sidecars)):
                self.counts.ignored += 1

    def _captions(
        self, shard: str, stamp: Stamp, archive: tarfile.TarFile, members: list[tarfile.TarInfo]
    ) -> Iterator[Candidate | Skip]:
        """The captions of a sample: `captions` or `caption` of its `.json`, else its `.txt`."""
        found: tuple[tarfile.TarInfo, dict[str, Json]] | None = None
        metadata: dict[str, Json] = {}
        for member in sorted(members, key=lambda m: m.name, reverse=True):
            if not has_suffix(member.name, frozenset({".txt", ".json"})):
                self.counts.ignored += not has_suffix(member.name, frozenset({".cls"}))
                continue
            values = self._sidecar(archive, member)
            metadata.update(without_text(values))
            if any(values.get(key) is not None for key in _CAPTIONS):
                found = member, values
        if found is not None:
            member, values = found
            entry = replace(_entry(shard, stamp, member), metadata=metadata)
            yield from caption_entries(entry, values, _CAPTIONS)

    def _sidecar(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Json]:
        return read_sidecar(partial(_read, archive, member), utf8(member.name), self.counts)


_CAPTIONS = ("captions", "caption")


@contextmanager
def open_shard(shard: str) -> Iterator[tuple[tarfile.TarFile, Stamp]]:
    """A shard opened for listing, with its own stamp.

    Raises:
        ContentError: if it is gone or cannot be read.
        TarError: if it is no tar file.
    """
    handle, stamp = open_place(shard, block_bytes=HEADER_BLOCK_BYTES)
    with handle, tarfile.open(fileobj=handle, mode="r:", tarinfo=_BoundedInfo) as archive:
        yield archive, stamp


class _BoundedInfo(tarfile.TarInfo):
    """A header of which tarfile reads no more than this at once, whatever size it claims."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _DESCRIBING and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]


def regular_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members but folders, of which none is kept.

    Raises:
        ReadError: for a member that claims a negative size.
    """
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        if member.size < 0:  # tarfile would go back and read the same members for ever
            raise tarfile.ReadError(f"a member claims {member.size} bytes")
        if not member.isdir():
            yield member


def _until_damage(
    members: Iterator[tarfile.TarInfo], damage: list[Exception]
) -> Iterator[tarfile.TarInfo]:
    """The members before the damage, which is put into the list: the last sample is kept."""
    try:
        yield from members
    except DAMAGE as err:
        damage.append(err)


def check_end(archive: tarfile.TarFile) -> None:
    """Tell the end of a shard from a damaged header, which tarfile takes for the end too.

    Raises:
        ReadError: if something else than zeros, or a part of a block, stands where it stopped.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) % tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {archive.offset:,}")


def utf8(name: str) -> str:
    """A member's name as it can be an id."""
    return name.removeprefix("./").encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def member_location(shard: str, member: tarfile.TarInfo) -> Location:
    """Where the bytes of a member are."""
    return Location(shard, member.offset_data, member.size)


def _entry(shard: str, stamp: Stamp, member: tarfile.TarInfo) -> Candidate:
    return Candidate(
        id=utf8(_key(member)),
        uri=uri_of(shard, member.name),
        location=member_location(shard, member),
        filename=os.path.basename(utf8(member.name)),
        stamp=Stamp(member.size, stamp.mtime_s) if stamp.mtime_s else None,
    )


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """A small member, from the same open file."""
    if member.size > MAX_SIDECAR_BYTES:
        raise ValueError(f"over {MAX_SIDECAR_BYTES:,} bytes")
    assert archive.fileobj is not None
    archive.fileobj.seek(member.offset_data)
    data = archive.fileobj.read(member.size)
    if len(data) < member.size:
        raise ValueError("the shard ends before it does")
    return bytes(data)


def not_listed(err: ContentError) -> CotsError:
    """The error that ends a listing because a shard cannot be read."""
    message = f"{err}; the shards were not listed to the end, so nothing was changed"
    return InputError(message) if err.reason in ("missing", "not_a_file") else CotsError(message)


def _key(member: tarfile.TarInfo) -> str:
    folder, name = os.path.split(member.name.removeprefix("./"))
    return os.path.join(folder, name.split(".", 1)[0])


def _is_hidden(name: str) -> bool:
    return os.path.basename(name).startswith(".")
