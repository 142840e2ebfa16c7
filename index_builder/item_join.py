"""Rows of several `items.parquet` files as one, column by column, never as Python objects.

The result is byte for byte what `write_items` would write of all the items at once: a metadata key
that is an integer in one file and a text in another becomes JSON, as it would have been there.

Shape letters: N rows of all files, M of them chosen, n rows of one file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index_builder import items
from index_builder.items import FIXED, JSON_MARK, METADATA_PREFIX, SIMPLE, is_json_column
from index_builder.vectors import Rows

_KIND_OF = {kind: next(iter(kinds)) for kinds, kind in SIMPLE.items()}
_LARGE = {pa.string(): pa.large_string()}
_BLOCK = 65_536
_MOST_BYTES = 2**30


@dataclass(frozen=True)
class _Column:
    """A metadata column of one file, null wherever the row is not chosen."""

    values: pa.ChunkedArray
    is_json: bool

    def kinds(self) -> set[type]:
        """Python types of its values."""
        if self.values.null_count == len(self.values):
            return set()
        return set(_json_kinds(self.values)) if self.is_json else {_KIND_OF[self.values.type]}


def read_column(paths: Iterable[Path], name: str) -> pa.ChunkedArray:
    """One of the fixed columns of all files, one behind the other; texts as `large_string`."""
    kind = FIXED.field(name).type
    columns = [pq.read_table(path, columns=[name]).column(name) for path in paths]
    return _concat(columns, kind)


def join_items(paths: Sequence[Path], rows_M: Rows, out: Path) -> None:
    """Write the chosen rows of all files, in the order given.

    Args:
        paths: `items.parquet` files.
        rows_M: rows counted through all files.
        out: the file to write; OSError if it cannot be.
    """
    columns, fields = [], []
    for field in FIXED:
        columns.append(take(read_column(paths, field.name), rows_M, field.type))
        fields.append(field)
    schemas = [pq.read_schema(path) for path in paths]
    names = {name for schema in schemas for name in schema.names}
    chosen_N = np.zeros(sum(pq.read_metadata(path).num_rows for path in paths), bool)
    chosen_N[rows_M] = True
    for name in sorted(name for name in names if name.startswith(METADATA_PREFIX)):
        joined = _join_metadata(list(_columns(paths, schemas, name, chosen_N)))
        if joined is not None:
            values, kind, is_json = joined
            columns.append(take(values, rows_M, kind))
            fields.append(pa.field(name, kind, metadata=JSON_MARK if is_json else None))
    items.write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)), out)


def take(column: pa.ChunkedArray, rows_M: Rows, kind: pa.DataType) -> pa.ChunkedArray:
    """The chosen values of a column, in chunks of a row group or less."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], type=column.type)
    size = items.ROW_GROUP
    chunks = [
        chunk
        for start in range(0, len(rows_M), size)
        for chunk in _cast(whole.take(pa.array(rows_M[start : start + size])), kind)
    ]
    return pa.chunked_array(chunks, type=kind)


def _cast(values: pa.Array, kind: pa.DataType) -> list[pa.Array]:
    """The values as another type, in pieces that it can hold: a `string` array ends at 2 GiB."""
    if values.nbytes <= _MOST_BYTES or len(values) < 2:
        return [values.cast(kind)]
    middle = len(values) // 2
    return _cast(values.slice(0, middle), kind) + _cast(values.slice(middle), kind)


def _columns(
    paths: Sequence[Path], schemas: Sequence[pa.Schema], name: str, chosen_N: np.ndarray
) -> Iterator[_Column]:
    start = 0
    for path, schema in zip(paths, schemas, strict=True):
        size = pq.read_metadata(path).num_rows
        chosen_n = pa.array(chosen_N[start : start + size])
        start += size
        if name not in schema.names:
            yield _Column(pa.chunked_array([pa.nulls(size)]), is_json=False)
            continue
        column = pq.read_table(path, columns=[name]).column(name)
        none = pa.scalar(None, column.type)
        is_json = is_json_column(schema.field(name))
        yield _Column(pc.if_else(chosen_n, column, none), is_json)


def _join_metadata(
    columns: list[_Column],
) -> tuple[pa.ChunkedArray, pa.DataType, bool] | None:
    """All values, their type, and whether they are JSON; `None` if there is no value."""
    kinds: set[type] = set()
    for column in columns:
        kinds |= column.kinds()
    if not kinds:
        return None
    simple = SIMPLE.get(frozenset(kinds))
    if simple is not None:
        try:
            typed = [_to_type(column, simple) for column in columns]
            return _concat(typed, simple), simple, False
        except (pa.ArrowInvalid, OverflowError):  # an integer over 64 bits
            pass
    return _concat([_to_json(column) for column in columns], pa.string()), pa.string(), True


def _json_kinds(values: pa.ChunkedArray) -> set[type]:
    """Types of the values of JSON texts; stops where there are two, for then it is settled."""
    kinds: set[type] = set()
    for text in _non_null(values):
        kinds.add(type(json.loads(text)))
        if len(kinds) > 1 or not kinds <= set(_KIND_OF.values()):
            break
    return kinds


def _non_null(values: pa.ChunkedArray) -> Iterator[str]:
    for start in range(0, len(values), _BLOCK):
        yield from values.slice(start, _BLOCK).drop_null().to_pylist()


def _to_type(column: _Column, kind: pa.DataType) -> pa.ChunkedArray:
    if not column.is_json:
        return column.values.cast(kind)
    return _mapped(column.values, json.loads, kind)


def _to_json(column: _Column) -> pa.ChunkedArray:
    if column.is_json or pa.types.is_null(column.values.type):
        return column.values.cast(pa.string())
    return _mapped(column.values, _dumps, pa.string())


def _dumps(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _mapped(values: pa.ChunkedArray, function, kind: pa.DataType) -> pa.ChunkedArray:  # type: ignore[no-untyped-def]
    """Each value put through a Python function, a block at a time."""
    chunks = [
        pa.array(
            [
                None if value is None else function(value)
                for value in values.slice(start, _BLOCK).to_pylist()
            ],
            type=kind,
        )
        for start in range(0, len(values), _BLOCK)
    ]
    return pa.chunked_array(chunks, type=kind)


def _concat(columns: Sequence[pa.ChunkedArray], kind: pa.DataType) -> pa.ChunkedArray:
    """Columns one behind the other; texts as `large_string`, whose offsets do not run out."""
    large = _LARGE.get(kind, kind)
    chunks = [chunk for column in columns for chunk in column.cast(large).chunks]
    return pa.chunked_array(chunks, type=large)
