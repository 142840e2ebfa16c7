"""Items and their table, `items.parquet`: the one place that writes and reads it.

Columns `id, uri, size_bytes, mtime_s, sha256, offset_bytes, text, start_s, end_s, duration_s`, then
one `metadata.<key>` per metadata key. A key whose values share one simple type (bool, int, float,
str) is a column of that type; any other is stored as JSON text, marked in the column's field
metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from cots_model.errors import GalleryError
from index_builder.segments import is_segment_of, segment_prefix

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_DEPTH = 32
"""Deepest nesting of metadata; JSON writers give up at some depth, an HTTP answer must not."""

ROW_GROUP = 131_072
"""Rows of a parquet row group; fixed, so that equal items give equal bytes however they came."""

METADATA_PREFIX = "metadata."
JSON_MARK = {b"cots.encoding": b"json"}
FIXED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("mtime_s", pa.float64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("offset_bytes", pa.int64()),
        pa.field("text", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("duration_s", pa.float64()),
    ]
)
SIMPLE: dict[frozenset[type], pa.DataType] = {
    frozenset({bool}): pa.bool_(),
    frozenset({int}): pa.int64(),
    frozenset({float}): pa.float64(),
    frozenset({str}): pa.string(),
}


@dataclass(frozen=True)
class Item:
    """One indexed original.

    Attributes:
        id: its path relative to the source, or its key in a shard; unique in the gallery.
        uri: where the original is; for a member of a shard, `file:///shard.tar#member`.
        size_bytes: length of the original.
        mtime_s: modification time of the file, or of the shard, seconds since 1970.
        sha256: hex digest of the original's bytes.
        offset_bytes: start of the member inside its shard; `None` for a file of its own.
        text: the text that was embedded, in a text gallery.
        start_s: where the segment of a video begins; `None` for pictures, texts and whole videos.
        end_s: where it ends.
        duration_s: length of the whole video; `None` for pictures and texts.
        metadata: captions, labels and whatever else came with it; null values are left out.
    """

    id: str
    uri: str
    size_bytes: int
    mtime_s: float
    sha256: str
    offset_bytes: int | None = None
    text: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    duration_s: float | None = None
    metadata: dict[str, Json] = field(default_factory=dict)

    @property
    def middle_s(self) -> float:
        """The middle of a video, or of its segment, in seconds from the start of the video."""
        end_s = self.duration_s if self.end_s is None else self.end_s
        return round(((self.start_s or 0.0) + (end_s or 0.0)) / 2, 6)


@dataclass(frozen=True)
class MetadataColumn:
    """The values of one metadata key, in row order; null where an item has none.

    Attributes:
        name: the key.
        values: of one simple type, or texts of JSON.
        is_json: whether they are texts of JSON.
    """

    name: str
    values: pa.ChunkedArray
    is_json: bool


class ItemRows(Protocol):
    """Items by row and by id, wherever they are kept; rows are sorted by id."""

    def __len__(self) -> int: ...

    def item(self, row: int) -> Item:
        """The item of a row."""
        ...

    def items(self, rows: Sequence[int]) -> list[Item]:
        """The items of some rows, in that order."""
        ...

    def find(self, item_id: str) -> int | None:
        """Row of an id, or `None`."""
        ...

    def ids(self) -> list[str]:
        """All ids, in row order."""
        ...

    def metadata_columns(self) -> list[MetadataColumn] | None:
        """The metadata of all items, by column; `None` if it is kept by item only."""
        ...


class ItemTable:
    """The items of a version in memory, by row; rows are sorted by id."""

    def __init__(self, table: pa.Table) -> None:
        """Hold a table that has our columns; see `read_items`."""
        self._table = table
        self._ids = table.column("id")
        self._metadata = metadata_columns(table)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def id(self, row: int) -> str:
        """Id of a row."""
        return str(self._ids[row].as_py())

    def ids(self) -> list[str]:
        """All ids, in row order."""
        return [str(value) for value in self._ids.to_pylist()]

    def metadata_columns(self) -> list[MetadataColumn]:
        """The metadata of all items, by column."""
        return self._metadata

    def item(self, row: int) -> Item:
        """The item of a row."""
        [item] = self.items(range(row, row + 1))
        return item

    def items(self, rows: Sequence[int]) -> list[Item]:
        """The items of some rows, in that order."""
        if isinstance(rows, range) and rows.step == 1:
            return ItemTable(self._table.slice(rows.start, len(rows))).all()
        return ItemTable(self._table.take(pa.array(rows, pa.int64()))).all()

    def all(self) -> list[Item]:
        """All items, in row order."""
        columns = [self._table.column(name).to_pylist() for name in FIXED.names]
        metadata = self._all_metadata()
        return [
            Item(**dict(zip(FIXED.names, values, strict=True)), metadata=metadata[row])
            for row, values in enumerate(zip(*columns, strict=True))
        ]

    def find(self, item_id: str) -> int | None:
        """Row of an id, by binary search, or `None`."""
        row = self._first_from(item_id)
        return row if row < len(self) and self.id(row) == item_id else None

    def find_entry(self, entry_id: str) -> list[int]:
        """Rows of what was one entry of the source: an item, or the segments of a video."""
        row = self.find(entry_id)
        if row is not None:
            return [row]
        prefix = segment_prefix(entry_id)
        rows = []
        at = self._first_from(prefix)
        while at < len(self) and (item_id := self.id(at)).startswith(prefix):
            has_start = self._table.column("start_s")[at].as_py() is not None
            if has_start and is_segment_of(entry_id, item_id):
                rows.append(at)
            at += 1
        return rows

    def _first_from(self, item_id: str) -> int:
        """The first row whose id is not before `item_id`."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.id(middle) < item_id:
                low = middle + 1
            else:
                high = middle
        return low

    def _all_metadata(self) -> list[dict[str, Json]]:
        rows: list[dict[str, Json]] = [{} for _ in range(len(self))]
        for column in self._metadata:
            for row, value in enumerate(column.values.to_pylist()):
                if value is not None:
                    rows[row][column.name] = json.loads(value) if column.is_json else value
        return rows


def write_items(items: Sequence[Item], path: Path) -> None:
    """Write items, in the order given."""
    columns = [
        pa.array([getattr(item, name) for item in items], type=FIXED.field(name).type)
        for name in FIXED.names
    ]
    fields = list(FIXED)
    for key in sorted({key for item in items for key in item.metadata}):
        column, mark = _metadata_column([item.metadata.get(key) for item in items])
        columns.append(column)
        fields.append(pa.field(METADATA_PREFIX + key, column.type, metadata=mark))
    write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)), path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table that has our columns."""
    pq.write_table(table, path, row_group_size=ROW_GROUP)


def read_items(path: Path) -> ItemTable:
    """Open an items file.

    Raises:
        GalleryError: if it is no parquet file, or lacks one of our columns.
    """
    try:
        table = pq.read_table(path, memory_map=True).combine_chunks()
    except (pa.ArrowException, OSError, ValueError) as err:
        raise GalleryError(f"{path} is damaged ({err}); build the gallery again") from err
    for expected in FIXED:
        if expected.name not in table.column_names or (
            table.schema.field(expected.name).type != expected.type
        ):
            raise GalleryError(f"{path} has no column {expected.name!r}; build the gallery again")
    return ItemTable(table)


def metadata_columns(table: pa.Table) -> list[MetadataColumn]:
    """The metadata columns of a table that has our columns, or these alone."""
    return [
        MetadataColumn(
            name=name.removeprefix(METADATA_PREFIX),
            values=table.column(name),
            is_json=is_json_column(table.schema.field(name)),
        )
        for name in table.column_names
        if name.startswith(METADATA_PREFIX)
    ]


def clean_metadata(values: dict[str, object]) -> dict[str, Json]:
    """Keep what JSON can say: dates become ISO text, NaN and null are left out.

    Raises:
        ValueError: if lists and objects are nested more than `MAX_DEPTH` deep.
    """
    cleaned = {str(key): _clean(value) for key, value in values.items()}
    return {_utf8(key): value for key, value in cleaned.items() if value is not None}


def _clean(value: object, depth: int = 1) -> Json:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _utf8(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, dict):
        return {_utf8(str(key)): _clean(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray):
        return [_clean(entry, depth + 1) for entry in value]
    isoformat = getattr(value, "isoformat", None)
    return str(isoformat()) if isoformat else _utf8(str(value))


def _utf8(text: str) -> str:
    """Replace lone surrogates, which neither parquet nor JSON over HTTP can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _metadata_column(values: Sequence[Json]) -> tuple[pa.Array, dict[bytes, bytes] | None]:
    kinds = frozenset(type(value) for value in values if value is not None)
    simple = SIMPLE.get(kinds)
    if simple is not None:
        try:
            return pa.array(values, type=simple), None
        except (pa.ArrowInvalid, OverflowError):  # an integer over 64 bits
            pass
    texts = [None if value is None else json.dumps(value, sort_keys=True) for value in values]
    return pa.array(texts, type=pa.string()), JSON_MARK


def is_json_column(column: pa.Field) -> bool:
    """Whether the texts of a metadata column are JSON."""
    return bool(column.metadata and column.metadata.get(b"cots.encoding") == b"json")
