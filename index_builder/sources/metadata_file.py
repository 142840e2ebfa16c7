"""`--metadata FILE`: columns for the items, from a csv, json, jsonl or parquet file.

Rows are matched by a column `id` (the item's id), or else by `filename` (the picture's name with
its extension: the path relative to the source folder, or the member's name in a shard).
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cots_model.errors import InputError
from index_builder.items import Json, clean_metadata
from index_builder.sources.entry import Candidate

_KEYS = ("id", "filename")


class MetadataFile:
    """The rows of a metadata file, by item."""

    def __init__(self, rows: dict[str, dict[str, Json]], key: str) -> None:
        """Hold rows by the value of their `key` column; see `read_metadata_file`."""
        self._rows = rows
        self._key = key
        self.matched = 0

    def __len__(self) -> int:
        return len(self._rows)

    def row_of(self, candidate: Candidate) -> dict[str, Json]:
        """The row of an item, or nothing; counts the matches."""
        name = candidate.id if self._key == "id" else candidate.filename
        row = self._rows.get(name)
        self.matched += row is not None
        return row or {}


def read_metadata_file(path: Path) -> MetadataFile:
    """Read a metadata file.

    Raises:
        InputError: if it cannot be read, has neither an `id` nor a `filename` column, or names an
            item twice.
    """
    readers = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl, ".parquet": _read_pq}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is no metadata file; accepted: {', '.join(readers)}")
    try:
        rows = reader(path)
    except (OSError, ValueError, RecursionError, pa.ArrowException) as err:
        raise InputError(f"{path} cannot be read as {path.suffix} ({err})") from err
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} must hold a list of objects, each with an id")
    key = next((key for key in _KEYS if rows and key in rows[0]), None)
    if key is None:
        found = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise InputError(f"{path} has {found}; a column `id` (or `filename`) is needed")
    return MetadataFile(_by_key(rows, key, path), key)


def _by_key(rows: list[dict[str, object]], key: str, path: Path) -> dict[str, dict[str, Json]]:
    found: dict[str, dict[str, Json]] = {}
    for number, row in enumerate(rows, start=1):
        name = row.get(key)
        if name is None:
            raise InputError(f"{path}, row {number}: no {key}; every row needs one")
        if str(name) in found:
            raise InputError(f"{path}, row {number}: {key} {name!r} comes twice; keep one row")
        try:
            found[str(name)] = clean_metadata({k: v for k, v in row.items() if k != "id"})
        except ValueError as err:
            raise InputError(f"{path}, row {number}: {err}; flatten it") from err
    return found


def _read_csv(path: Path) -> list[dict[str, object]]:
    options = pyarrow.csv.ConvertOptions(
        column_types={key: pa.string() for key in _KEYS}, strings_can_be_null=True
    )
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    table = pyarrow.csv.read_csv(path, parse_options=parsing, convert_options=options)
    return list(table.to_pylist())


def _read_json(path: Path) -> list[dict[str, object]]:
    rows = json.loads(path.read_text("utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("a list of objects is needed")  # noqa: TRY004
    return rows


def _read_jsonl(path: Path) -> list[dict[str, object]]:
    lines = path.read_text("utf-8-sig").split("\n")  # texts may hold other ends of lines
    return [json.loads(line) for line in lines if line.strip()]


def _read_pq(path: Path) -> list[dict[str, object]]:
    return list(pq.read_table(path).to_pylist())
