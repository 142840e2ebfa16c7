"""Pictures, videos or texts in a folder, read recursively.

Symlinks are never a way out: a link to a file inside the folder is an item of its own, a link to a
folder is not entered (what lies inside is read under its own path), and any link that leads
outside, to nothing, or round in a circle is listed as skipped.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cots_model.errors import InputError
from index_builder.content import open_location, read_location
from index_builder.items import Json
from index_builder.location import ContentError, Location, Stamp, file_uri, is_utf8
from index_builder.manifest import Modality
from index_builder.sources.entry import Candidate, ReaderCounts, Skip, has_suffix
from index_builder.sources.kinds import kind_of
from index_builder.sources.sidecars import MAX_SIDECAR_BYTES, Siblings, read_sidecar
from index_builder.sources.texts import MAX_TEXT_BYTES, as_text


class FolderSource:
    """All items of a kind under a folder; ids are paths relative to it, with `/`."""

    def __init__(
        self, folder: Path, *, modality: Modality = "image", exclude: Path | None = None
    ) -> None:
        """Take a folder; `exclude` is not entered.

        Raises:
            InputError: if the folder cannot be listed.
        """
        self._kind = kind_of(modality)
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
        """Every item, in order of folder and name."""
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
            siblings = Siblings({entry.name for entry in entries}, self._kind)
            subfolders = []
            for entry in entries:
                if entry.name.startswith("."):
                    self.counts.ignored += 1
                elif entry.is_dir(follow_symlinks=False):
                    if entry.path != self._exclude:
                        subfolders.append(entry.path)
                    if has_suffix(entry.name, self._kind.suffixes):
                        nouns = f"{self._kind.noun}s"
                        why = f"this is a folder; the {nouns} in it are indexed by themselves"
                        yield self._skip(entry.path, "not_a_file", why)
                else:
                    yield from self._file(entry, siblings)
            pending += reversed(subfolders)

    def _file(self, entry: os.DirEntry[str], siblings: Siblings) -> Iterator[Candidate | Skip]:
        if entry.is_symlink():
            problem = self._link_problem(entry)
            if problem is not None:
                yield self._skip(entry.path, *problem)
                return
        if has_suffix(entry.name, self._kind.unread):
            suffix = os.path.splitext(entry.name)[1].lower()
            why = f"{suffix} {self._kind.noun}s are not read; save it as {self._kind.save_as}"
            yield self._skip(entry.path, "unsupported_format", why)
        elif not has_suffix(entry.name, self._kind.suffixes):
            self.counts.ignored += not siblings.is_sidecar(entry.name)
        elif not is_utf8(self._relative(entry.path)):
            why = "its name is not valid UTF-8, so it can have no id; rename it"
            yield self._skip(entry.path, "bad_name", why)
        else:
            yield self._candidate(entry, siblings)

    def _candidate(self, entry: os.DirEntry[str], siblings: Siblings) -> Candidate | Skip:
        location = Location(entry.path, root=self.root)
        is_text = self._kind.modality == "text"
        data = b""
        try:
            if not entry.is_file():  # a fifo, a socket or a device: say which, without waiting
                open_location(location)[0].close()
            if is_text:
                data, _ = read_location(location, max_bytes=MAX_TEXT_BYTES)
        except ContentError as err:
            return self._skip(entry.path, err.reason, str(err))
        relative = self._relative(entry.path)
        uri, metadata = file_uri(entry.path), self._sidecars(entry, siblings)
        found = Candidate(relative, uri, location, relative, metadata, _stamp(entry))
        return as_text(found, data) if is_text else found

    def _sidecars(self, entry: os.DirEntry[str], siblings: Siblings) -> dict[str, Json]:
        folder = os.path.dirname(entry.path)
        metadata: dict[str, Json] = {}
        for name in siblings.sidecars_of(entry.name):
            location = Location(os.path.join(folder, name), root=self.root)
            shown = self._relative(location.path)
            metadata.update(read_sidecar(partial(_read_small, location), shown, self.counts))
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
        if not Path(real).is_relative_to(self.root) and has_suffix(entry.name, self._kind.suffixes):
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


def _read_small(location: Location) -> bytes:
    return read_location(location, max_bytes=MAX_SIDECAR_BYTES)[0]


def _stamp(entry: os.DirEntry[str]) -> Stamp | None:
    try:
        status = entry.stat()
    except OSError:  # it is gone; reading it will say so
        return None
    return Stamp(status.st_size, status.st_mtime)


def _readable(text: str) -> str:
    r"""Bytes of a name that are not UTF-8 as `\xff`, so that the text can be written anywhere."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")
