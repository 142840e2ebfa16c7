"""Manifests: csv, tsv, json, jsonl and parquet files whose rows name pictures or hold texts.

A row names its file in one of `PATH_COLUMNS`; `id` is the item's id, else the name as written. In a
text gallery the text stands in `text`, `caption` or `captions` (a list gives several items). All
other columns are metadata. A row that cannot be used is skipped; a file that breaks off ends the
listing with an error, so that half a manifest is never published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cots_model.errors import InputError
from index_builder.items import Json, clean_metadata
from index_builder.location import ContentError, Location, Stamp, is_utf8, name_of, uri_of
from index_builder.manifest import Modality
from index_builder.sources.entry import Candidate, ReaderCounts, Skip
from index_builder.sources.finders import Finder
from index_builder.sources.places import open_place
from index_builder.sources.rows import Row, RowFile
from index_builder.sources.texts import TEXT_KEYS, caption_entries

_NAMES = ("path", "file", "filename", "file_name", "file_path")
PATH_COLUMNS: dict[Modality, tuple[str, ...]] = {
    "image": (*_NAMES, "image", "image_path", "uri", "url"),
    "video": (*_NAMES, "video", "video_path", "uri", "url"),
    "text": TEXT_KEYS,
}
"""Columns that name a file or hold a text; the first that a manifest has is taken."""


class ManifestSource:
    """The rows of one or several manifests, in their order."""

    def __init__(self, files: Sequence[RowFile], finder: Finder, *, modality: Modality) -> None:
        """Take opened manifests, and what finds the files that they name.

        Raises:
            InputError: if one has none of the columns that are needed.
        """
        self._files = files
        self._finder = finder
        self._modality = modality
        self._columns = [_column(file, modality) for file in files]
        self.name = ", ".join(file.place for file in files)
        self.counts = ReaderCounts()

    @property
    def roots(self) -> tuple[str, ...]:
        """Where what was read so far lies; of texts, the manifests."""
        if self._modality == "text":
            return tuple(file.place for file in self._files)
        return self._finder.roots

    def read(self) -> Iterator[Candidate | Skip]:
        """Every row.

        Raises:
            InputError: if a manifest breaks off.
        """
        for file, column in zip(self._files, self._columns, strict=True):
            if self._modality == "text":
                yield from self._texts(file)
            else:
                for row in file.rows():
                    yield self._item(file, row, column)

    def _item(self, file: RowFile, row: Row, column: str) -> Candidate | Skip:
        try:
            name = _name(row, column)
            item_id = _id(file, row) or name
            found = self._finder.find(name)
            metadata = _metadata(row, {"id", column})
        except ContentError as err:
            return _skip(file, row, err.reason, f"column {column}: {err}")
        except ValueError as err:
            return _skip(file, row, "bad_row", str(err))
        return Candidate(item_id, found.uri, found.location, name, metadata, found.stamp)

    def _texts(self, file: RowFile) -> Iterator[Candidate | Skip]:
        handle, stamp = open_place(file.place)
        handle.close()
        known = stamp if stamp.mtime_s else None
        for row in file.rows():
            try:
                entry = _text_entry(file, row, known)
            except ValueError as err:
                yield _skip(file, row, "bad_row", str(err))
                continue
            entries = list(caption_entries(entry, row.values))
            yield from (_at_row(file, row, one) for one in entries)
            if not entries:
                why = f"has no text in {' or '.join(TEXT_KEYS)}; every row needs one"
                yield _skip(file, row, "empty", why)


def _column(file: RowFile, modality: Modality) -> str:
    accepted = PATH_COLUMNS[modality]
    column = next((one for one in accepted if one in file.columns), None)
    if column is not None:
        return column
    shown = ", ".join(file.columns[:20]) or "none"
    other: Modality = "video" if modality == "image" else "image"
    hint = (
        f"; for its column {other!r} build with --modality {other}"
        if modality != "text" and other in file.columns
        else ""
    )
    raise InputError(
        f"{file.place} has the columns {shown} (columns of bytes are not read); for {modality} "
        f"items one of {', '.join(accepted)} is needed{hint}"
    )


def _name(row: Row, column: str) -> str:
    if row.problem:
        raise ValueError(row.problem)
    name = row.values.get(column)
    if isinstance(name, str) and name.strip() and "\0" not in name and is_utf8(name):
        return name.removeprefix("./")
    shown = "nothing" if name is None or name == "" else f"{name!r}"[:60]
    raise ValueError(f"column {column}: holds {shown}; a path or url is accepted")


def _id(file: RowFile, row: Row) -> str | None:
    """The row's id, or `None` if the manifest has no such column."""
    if "id" not in file.columns:
        return None
    value = row.values.get("id")
    if value is None:
        raise ValueError("column id: holds nothing; a text or whole number is accepted")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"column id: holds {value!r}; a text or whole number is accepted")
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _metadata(row: Row, used: set[str]) -> dict[str, Json]:
    return clean_metadata({key: one for key, one in row.values.items() if key not in used})


def _text_entry(file: RowFile, row: Row, stamp: Stamp | None) -> Candidate:
    if row.problem:
        raise ValueError(row.problem)
    item_id = _id(file, row) or row_id(file.place, row.number)
    metadata = _metadata(row, {"id", *TEXT_KEYS})
    place = Location(file.place)
    return Candidate(item_id, uri_of(file.place), place, item_id, metadata, stamp)


def _at_row(file: RowFile, row: Row, entry: Candidate | Skip) -> Candidate | Skip:
    if isinstance(entry, Candidate):
        return entry
    return replace(entry, message=f"{name_of(file.place)}, row {row.number}: {entry.message}")


def _skip(file: RowFile, row: Row, reason: str, message: str) -> Skip:
    said = f"{name_of(file.place)}, row {row.number}: {message}"
    return Skip(row_id(file.place, row.number), uri_of(file.place), reason, said)


def row_id(place: str, number: int) -> str:
    """The id of a row or line without one of its own: `NAME#00000012`."""
    return f"{name_of(place)}#{number:08d}"
