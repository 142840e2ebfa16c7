"""From the name of a picture in a manifest to its bytes: in a folder, under a url, or in shards.

A relative name never leads out of the folder that it is relative to. Absolute paths and urls are
taken as they are, unless a root was given: then everything lies in it.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cots_model.errors import InputError
from index_builder.location import (
    ContentError,
    Location,
    Stamp,
    file_uri,
    is_url,
    lies_in,
    name_of,
    path_of_uri,
    redact,
    scheme_of,
    uri_of,
    url_problem,
)
from index_builder.sources.places import folder_of, join
from index_builder.sources.shards import (
    DAMAGE,
    check_end,
    member_location,
    not_listed,
    open_shard,
    regular_members,
    utf8,
)

_MAX_ROOTS = 16


@dataclass(frozen=True)
class Found:
    """Where a name led to.

    Attributes:
        uri: for the item.
        location: its bytes.
        stamp: `None` where it is not there, or at a url.
    """

    uri: str
    location: Location
    stamp: Stamp | None


class Finder(Protocol):
    """Finds the files that a manifest names."""

    @property
    def roots(self) -> tuple[str, ...]:
        """What all that was found so far lies in or under."""
        ...

    def find(self, *names: str) -> Found:
        """The first of several names that is there; else where the first would be.

        Raises:
            ContentError: for a name that may not be followed, or is not in the shards.
        """
        ...


class FolderFinder:
    """Names are relative to a folder or url, or lead elsewhere by themselves."""

    def __init__(self, folder: str, *, closed: bool) -> None:
        """Take an absolute folder; `closed`: nothing outside it is accepted."""
        self._folder = folder if is_url(folder) else os.path.realpath(folder)
        self._closed = closed
        self._roots = _ShortRoots()

    @property
    def roots(self) -> tuple[str, ...]:
        """At most a few, whatever the number of folders."""
        return self._roots.list()

    def find(self, *names: str) -> Found:
        """See `Finder.find`."""
        found = [self._find(name) for name in names]
        return next((one for one in found if one.stamp is not None), found[0])

    def _find(self, name: str) -> Found:
        if is_url(name) and scheme_of(name) in ("file", "local"):
            name = path_of_uri("file" + name[name.index("://") :])
        if is_url(name):
            return self._at_url(name)
        if is_url(self._folder):
            return self._below_url(name)
        path = os.path.normpath(os.path.join(self._folder, name))
        if lies_in(path, self._folder):
            self._roots.add(self._folder)
            return Found(file_uri(path), Location(path, root=self._folder), _stamp(path))
        if self._closed or not os.path.isabs(name):
            raise _outside(name, self._folder)
        real = os.path.realpath(path)
        self._roots.add(os.path.dirname(real))
        return Found(file_uri(real), Location(real), _stamp(real))

    def _below_url(self, name: str) -> Found:
        relative = posixpath.normpath(name)
        if name.startswith("/") or relative.split("/")[0] == "..":
            raise _outside(name, self._folder)
        self._roots.add(self._folder)
        url = join(self._folder, relative)
        return Found(uri_of(url), Location(url, root=self._folder), None)

    def _at_url(self, name: str) -> Found:
        problem = url_problem(name)
        if problem is not None:
            raise ContentError("secret_in_url", f"{redact(name)} {problem}")
        from index_builder.remote import canonical

        try:
            url = canonical(name)
        except InputError as err:  # of this row, not of the whole manifest
            raise ContentError("unreadable", str(err)) from err
        if self._closed and not lies_in(url, self._folder):
            raise _outside(name, self._folder)
        root = self._folder if lies_in(url, self._folder) else folder_of(url)
        self._roots.add(root)
        return Found(uri_of(url), Location(url, root=root), None)


class ShardFinder:
    """Names are members of tar shards, by their whole name or, if there is one such, the last part.

    All names are held in memory, about a kilobyte each.
    """

    def __init__(self, shards: Sequence[str]) -> None:
        """Take shards, absolute paths or urls."""
        self._shards = tuple(shards)
        self._members: dict[str, Found] | None = None
        self._by_last: dict[str, Found | None] = {}

    @property
    def roots(self) -> tuple[str, ...]:
        """The shards."""
        return self._shards

    def find(self, *names: str) -> Found:
        """See `Finder.find`."""
        if self._members is None:
            self._members = self._list()
        for name in names:
            found = self._members.get(name.removeprefix("./"))
            if found is not None:
                return found
        for name in names:
            found = self._by_last.get(posixpath.basename(name))
            if found is not None:
                return found
        shown = ", ".join(map(name_of, self._shards[:3]))
        more = f" and {len(self._shards) - 3} more" if len(self._shards) > 3 else ""
        raise ContentError("missing", f"{names[0]} is not in {shown}{more}; add its shard")

    def _list(self) -> dict[str, Found]:
        members: dict[str, Found] = {}
        for shard in self._shards:
            try:
                for name, found in _members(shard):
                    members.setdefault(name, found)
                    last = posixpath.basename(name)
                    self._by_last[last] = None if last in self._by_last else found
            except ContentError as err:
                raise not_listed(err) from err
            except DAMAGE as err:
                why = f"{shard} cannot be read as a tar file ({err}); copy or write it again"
                raise InputError(why) from err
        return members


def _members(shard: str) -> Iterator[tuple[str, Found]]:
    with open_shard(shard) as (archive, own):
        for member in regular_members(archive):
            stamp = Stamp(member.size, own.mtime_s) if own.mtime_s else None
            location = member_location(shard, member)
            yield utf8(member.name), Found(uri_of(shard, member.name), location, stamp)
        check_end(archive)


class _ShortRoots:
    """Folders that cover all that were added, at most 16 of them, as deep as that allows."""

    def __init__(self) -> None:
        self._folders: set[str] = set()
        self._depth = 1_000_000

    def add(self, folder: str) -> None:
        self._folders.add(_cut(folder, self._depth))
        while len(self._folders) > _MAX_ROOTS and self._depth > 1:
            deepest = max(map(_depth, self._folders))
            self._depth = min(self._depth, deepest) - 1
            self._folders = {_cut(one, self._depth) for one in self._folders}

    def list(self) -> tuple[str, ...]:
        return tuple(
            sorted(
                one
                for one in self._folders
                if not any(other != one and lies_in(one, other) for other in self._folders)
            )
        )


def _depth(folder: str) -> int:
    return len(_parts(folder)[1])


def _cut(folder: str, depth: int) -> str:
    head, parts = _parts(folder)
    return head + "/".join(parts[: max(depth, 1)])


def _parts(folder: str) -> tuple[str, list[str]]:
    """What a path or url begins with (`/`, `s3://`), and its names."""
    head, _, rest = folder.rpartition("://")
    start = f"{head}://" if head else "/"
    if rest.startswith("/") and head:
        start, rest = start + "/", rest[1:]
    return start, [part for part in rest.split("/") if part]


def _outside(name: str, folder: str) -> ContentError:
    return ContentError(
        "outside_root", f"{redact(name)} lies outside {redact(folder)}; name a root that holds it"
    )


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # reading it will say so
        return None
    return Stamp(status.st_size, status.st_mtime)
