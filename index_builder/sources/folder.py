"""Pictures in a folder, read recursively.

Symlinks are never a way out: a link to a file inside the folder is an item of its own, a link to a
folder is not entered (what lies inside is read under its own path), and any link that leads
outside, to nothing, or round in a circle is listed as skipped.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cots_model.errors import InputError
from index_builder.content import ContentError, Location, file_uri, open_location
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


class _Siblings:
    """The file names of one folder: which of them are sidecars of a picture."""

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self._picture_stems = {
            os.path.splitext(name)[0] for name in names if has_suffix(name, IMAGE_SUFFIXES)
        }

    def is_sidecar(self, name: str) -> bool:
        return has_suffix(name, SIDECAR_SUFFIXES) and (
            os.path.splitext(name)[0] in self._picture_stems
        )

    def sidecars_of(self, stem: str) -> list[str]:
        """In the order to be laid over each other: `.json` over `.txt`."""
        found = {stem + suffix for suffix in SIDECAR_SUFFIXES} & self._names
        return sorted(found, reverse=True)


class FolderSource:
    """All pictures under a folder; ids are paths relative to it, with `/`."""

    def __init__(self, folder: Path, *, exclude: Path | None = None) -> None:
        """Take a folder; `exclude` is not entered.

        Raises:
            InputError: if the folder cannot be listed.
        """
        self.root = os.path.realpath(folder)
        self.name = self.root
        self.counts = ReaderCounts()
        self._exclude = None if exclude is None else os.path.realpath(exclude)
        try:
            os.scandir(self.root).close()
        except OSError as err:
            raise InputError(f"{folder} cannot be listed ({err.strerror}); check it") from err

    @property
    def roots(self) -> tuple[str, ...]:
        """The folder."""
        return (self.root,)

    def read(self) -> Iterator[Candidate | Skip]:
        """Every picture, in order of folder and name."""
        pending = [self.root]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as err:
                why = f"the folder could not be listed ({err.strerror}); check its permissions"
                yield self._skip(folder, "unreadable", why)
                continue
            siblings = _Siblings({entry.name for entry in entries})
            subfolders = []
            for entry in entries:
                if entry.name.startswith("."):
                    self.counts.ignored += 1
                elif entry.is_dir(follow_symlinks=False):
                    if entry.path != self._exclude:
                        subfolders.append(entry.path)
                    if has_suffix(entry.name, IMAGE_SUFFIXES):
                        why = "this is a folder; the pictures in it are indexed by themselves"
                        yield self._skip(entry.path, "not_a_file", why)
                else:
                    yield from self._file(entry, siblings)
            pending += reversed(subfolders)

    def _file(self, entry: os.DirEntry[str], siblings: _Siblings) -> Iterator[Candidate | Skip]:
        if entry.is_symlink():
            problem = self._link_problem(entry)
            if problem is not None:
                yield self._skip(entry.path, *problem)
                return
        if has_suffix(entry.name, UNREAD_IMAGE_SUFFIXES):
            suffix = os.path.splitext(entry.name)[1].lower()
            why = f"{suffix} pictures are not read; save it as JPEG, PNG or WebP"
            yield self._skip(entry.path, "unsupported_format", why)
        elif not has_suffix(entry.name, IMAGE_SUFFIXES):
            self.counts.ignored += not siblings.is_sidecar(entry.name)
        elif not _is_utf8(self._relative(entry.path)):
            why = "its name is not valid UTF-8, so it can have no id; rename it"
            yield self._skip(entry.path, "bad_name", why)
        else:
            yield self._candidate(entry, siblings)

    def _candidate(self, entry: os.DirEntry[str], siblings: _Siblings) -> Candidate | Skip:
        location = Location(entry.path, root=self.root)
        if not entry.is_file():  # a fifo, a socket or a device: find out which without waiting
            try:
                open_location(location)[0].close()
            except ContentError as err:
                return self._skip(entry.path, err.reason, str(err))
        relative = self._relative(entry.path)
        metadata = self._sidecars(entry, siblings)
        return Candidate(relative, file_uri(entry.path), location, relative, metadata)

    def _sidecars(self, entry: os.DirEntry[str], siblings: _Siblings) -> dict[str, Json]:
        stem = os.path.splitext(entry.name)[0]
        folder = os.path.dirname(entry.path)
        metadata: dict[str, Json] = {}
        for name in siblings.sidecars_of(stem):
            location = Location(os.path.join(folder, name), root=self.root)
            metadata.update(read_sidecar(location, self._relative(location.path), self.counts))
        return metadata

    def _link_problem(self, entry: os.DirEntry[str]) -> tuple[str, str] | None:
        """Why a symlink is not followed, if it is one that would matter."""
        try:
            real = os.path.realpath(entry.path, strict=True)
            status = entry.stat()
        except OSError:
            return self._broken_link(entry)
        if stat.S_ISDIR(status.st_mode):
            return self._folder_link(entry.path, real)
        if not Path(real).is_relative_to(self.root) and has_suffix(entry.name, IMAGE_SUFFIXES):
            return "symlink_outside", "points outside the source folder; copy the file into it"
        return None

    def _broken_link(self, entry: os.DirEntry[str]) -> tuple[str, str]:
        try:
            open_location(Location(entry.path, root=self.root))[0].close()
        except ContentError as err:
            return err.reason, str(err)
        return "unreadable", f"{entry.name} changed while it was looked at; build again"

    def _folder_link(self, path: str, real: str) -> tuple[str, str]:
        if Path(path).is_relative_to(real):
            return "symlink_loop", "points at a folder that it lies in; remove the link"
        if Path(real).is_relative_to(self.root):
            return "symlinked_folder", "points at a folder that is indexed under its own path"
        return "symlink_outside", "points at a folder outside the source; index that one by itself"

    def _skip(self, path: str, reason: str, message: str) -> Skip:
        return Skip(_readable(self._relative(path)), file_uri(path), reason, _readable(message))

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")


def _readable(text: str) -> str:
    r"""Bytes of a name that are not UTF-8 as `\xff`, so that the text can be written anywhere."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
