"""Pictures, videos or texts under a url, read recursively.

As in a folder on disk, each folder's files come by name, then its subfolders. Listings of the next
few folders, and the sidecars and texts of the next few files, are fetched ahead by threads; the
memory needed is that of the largest single folder's listing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from cots_model.errors import CotsError
from index_builder.content import read_location
from index_builder.items import Json
from index_builder.location import ContentError, Location, lies_in, name_of, uri_of
from index_builder.manifest import Modality
from index_builder.remote import Listed, list_folder
from index_builder.sources.entry import Candidate, ReaderCounts, Skip, has_suffix
from index_builder.sources.kinds import kind_of
from index_builder.sources.sidecars import MAX_SIDECAR_BYTES, Siblings, read_sidecar
from index_builder.sources.texts import MAX_TEXT_BYTES, as_text

_THREADS = 16
_AHEAD_FILES = 64

Reads = dict[str, Future[bytes]]


class UrlFolderSource:
    """All items of a kind under a url; ids are names relative to it, with `/`."""

    def __init__(self, url: str, *, modality: Modality = "image") -> None:
        """Take a url as `index_builder.remote.canonical` writes it."""
        self._root = url
        self._kind = kind_of(modality)
        self.name = url
        self.counts = ReaderCounts()

    @property
    def roots(self) -> tuple[str, ...]:
        """The url."""
        return (self._root,)

    def read(self) -> Iterator[Candidate | Skip]:
        """Every item, in order of folder and name.

        Raises:
            CotsError: if a folder cannot be listed: half a bucket is never published.
        """
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="cots-list")
        try:
            yield from self._walk(pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a server may not answer for minutes

    def _walk(self, pool: ThreadPoolExecutor) -> Iterator[Candidate | Skip]:
        pending = [self._root]
        listings: dict[str, Future[list[Listed]]] = {}
        while pending:
            for folder in pending[-_THREADS:]:
                if folder not in listings:
                    listings[folder] = pool.submit(list_folder, folder)
            folder = pending.pop()
            try:
                entries = listings.pop(folder).result()
            except ContentError as err:
                message = f"{err}; the listing is not whole, so nothing was changed"
                raise CotsError(message) from err
            files, folders, skips = self._split(folder, entries)
            yield from skips
            yield from self._files(pool, folder, files)
            pending += reversed(folders)

    def _split(
        self, folder: str, entries: list[Listed]
    ) -> tuple[list[Listed], list[str], list[Skip]]:
        """The files and subfolders that are not hidden, and what has no usable name."""
        files, folders, skips = [], [], []
        for entry in entries:
            url = entry.url.rstrip("/")
            if url == folder and not entry.is_folder:
                continue  # a bucket's marker of the folder itself
            if url == folder or not lies_in(url, folder):
                why = "an empty name or `..` in its path cannot be an id; rename it"
                skips.append(Skip(self._relative(entry.url), uri_of(entry.url), "bad_name", why))
            elif name_of(url).startswith("."):
                self.counts.ignored += 1
            elif entry.is_folder:
                folders.append(url)
            elif not entry.url.endswith("/"):
                files.append(entry)
        return files, folders, skips

    def _files(
        self, pool: ThreadPoolExecutor, folder: str, files: list[Listed]
    ) -> Iterator[Candidate | Skip]:
        siblings = Siblings({name_of(file.url) for file in files}, self._kind)
        for at in range(0, len(files), _AHEAD_FILES):
            some = files[at : at + _AHEAD_FILES]
            reads = self._read_ahead(pool, folder, some, siblings)
            for file in some:
                yield from self._file(file, siblings, folder, reads)

    def _read_ahead(
        self, pool: ThreadPoolExecutor, folder: str, files: list[Listed], siblings: Siblings
    ) -> Reads:
        """Start to read the texts and sidecars of some files."""
        wanted: dict[str, int] = {}
        for file in files:
            if has_suffix(name_of(file.url), self._kind.suffixes):
                if self._kind.modality == "text":
                    wanted[file.url] = MAX_TEXT_BYTES
                for name in siblings.sidecars_of(name_of(file.url)):
                    wanted[f"{folder}/{name}"] = MAX_SIDECAR_BYTES
        return {
            url: pool.submit(_read, Location(url, root=self._root), limit)
            for url, limit in wanted.items()
        }

    def _file(
        self, file: Listed, siblings: Siblings, folder: str, reads: Reads
    ) -> Iterator[Candidate | Skip]:
        name, relative = name_of(file.url), self._relative(file.url)
        if has_suffix(name, self._kind.unread):
            why = f"{self._kind.noun}s of this kind are not read; save it as {self._kind.save_as}"
            yield Skip(relative, uri_of(file.url), "unsupported_format", why)
        elif not has_suffix(name, self._kind.suffixes):
            self.counts.ignored += not siblings.is_sidecar(name)
        else:
            metadata: dict[str, Json] = {}
            for sidecar in siblings.sidecars_of(name):
                url = f"{folder}/{sidecar}"
                shown = self._relative(url)
                metadata.update(read_sidecar(reads[url].result, shown, self.counts))
            location = Location(file.url, root=self._root)
            found = Candidate(relative, uri_of(file.url), location, relative, metadata, file.stamp)
            yield self._with_text(found, reads) if self._kind.modality == "text" else found

    def _relative(self, url: str) -> str:
        return url[len(self._root) :].removeprefix("/")

    def _with_text(self, found: Candidate, reads: Reads) -> Candidate | Skip:
        try:
            return as_text(found, reads[found.location.path].result())
        except ContentError as err:
            return Skip(found.id, found.uri, err.reason, str(err))


def _read(location: Location, max_bytes: int) -> bytes:
    return read_location(location, max_bytes=max_bytes)[0]
