"""Metadata by column, as filters see it: cells sorted by type.

A column of one simple type is taken as it lies in the items' table. A column of JSON is decoded
once, into the cells of each type and of each field of its objects: `exif.iso` are the values under
`iso` in the objects of `exif`. Elements of lists keep the row of their list.

Shape letters: N rows, C cells.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from index_builder.filter import as_double
from index_builder.indexes.base import OnBlock
from index_builder.items import Json, MetadataColumn
from index_builder.vectors import Rows

Mask = npt.NDArray[np.bool_]
Kind = Literal["whole", "real", "text", "boolean"]

MAX_FIELDS = 10_000
"""Different fields of the objects of one column; of a column with more, none can be named."""

_WAIT_S = 0.05
_TYPES: Mapping[Kind, pa.DataType] = {
    "whole": pa.int64(),
    "real": pa.float64(),
    "text": pa.string(),
    "boolean": pa.bool_(),
}
_KINDS: Mapping[pa.DataType, Kind] = {type_: kind for kind, type_ in _TYPES.items()}


@dataclass(frozen=True)
class Cells:
    """Values of one type, and the rows that they are in.

    Attributes:
        kind: their type.
        values: `[C]`; without `rows`, null where a row has none.
        rows: `[C]`, a row several times if it is of a list; `None` where each row has its place.
    """

    kind: Kind
    values: pa.ChunkedArray
    rows: Rows | None = None


@dataclass(frozen=True)
class Column:
    """One column, or one field of its objects.

    Attributes:
        cells: values, by type.
        elements: of the lists in it, by type.
        present_N: rows that have any value, a list or an object included.
    """

    cells: tuple[Cells, ...]
    elements: tuple[Cells, ...]
    present_N: Mask


class MetadataColumns:
    """The columns of an opened version, by name; safe to use from several threads."""

    def __init__(self, columns: Iterable[MetadataColumn], num_rows: int) -> None:
        """Hold columns of `num_rows` rows; those of JSON are decoded when one is asked for."""
        self._columns = {column.name: _Source(column, num_rows) for column in columns}

    def names(self) -> list[str]:
        """The columns, without the fields of their objects."""
        return list(self._columns)

    def find(self, name: str, on_block: OnBlock) -> Column | None:
        """A column, or with dots a field of one; `None` if no row has it.

        Of `a.b.c` the longest name that is a column is taken: `a.b.c`, else `a.b`, else `a`.

        Args:
            name: of the column.
            on_block: called again and again while another thread decodes the column.
        """
        end = len(name)
        while end >= 0:
            source = self._columns.get(name[:end])
            found = None if source is None else source.fields(on_block).get(name[end:])
            if found is not None:
                return found
            end = name.rfind(".", 0, end)
        return None


class _Source:
    """A column as it is stored; the first to ask for it sorts its cells, and they are kept."""

    def __init__(self, column: MetadataColumn, num_rows: int) -> None:
        self._column = column
        self._num_rows = num_rows
        self._fields: Mapping[str, Column] | None = None
        self._sorting = threading.Lock()

    def fields(self, on_block: OnBlock) -> Mapping[str, Column]:
        """The column itself under the empty name, and `.name` for each field of its objects."""
        while self._fields is None:
            if not self._sorting.acquire(timeout=_WAIT_S):
                on_block()
                continue
            try:
                if self._fields is None:
                    self._fields = self._sort()
            finally:
                self._sorting.release()
        return self._fields

    def _sort(self) -> Mapping[str, Column]:
        values = self._column.values
        if self._column.is_json:
            return _decode(values, self._num_rows)
        present_N = pc.is_valid(values).to_numpy()
        return {"": Column((Cells(_KINDS[values.type], values),), (), present_N)}


def _decode(texts: pa.ChunkedArray, num_rows: int) -> Mapping[str, Column]:
    """The columns in JSON texts.

    It is not given up at a deadline: it is done once, and the next request would begin it anew.
    """
    found: defaultdict[str, _Collected] = defaultdict(_Collected)
    for row, text in enumerate(texts.to_pylist()):
        if text is not None:
            _collect(found, row, json.loads(text))
    names = list(found) if len(found) <= MAX_FIELDS else [""]  # else keys are data, no names
    return {name: found[name].column(num_rows) for name in names}


@dataclass
class _Typed:
    """Rows and values of one type."""

    rows: list[int] = field(default_factory=list)
    values: list[Json] = field(default_factory=list)


@dataclass
class _Collected:
    """What has been seen of one field so far."""

    present: list[int] = field(default_factory=list)
    cells: defaultdict[Kind, _Typed] = field(default_factory=lambda: defaultdict(_Typed))
    elements: defaultdict[Kind, _Typed] = field(default_factory=lambda: defaultdict(_Typed))

    def column(self, num_rows: int) -> Column:
        """All of it."""
        present_N = np.zeros(num_rows, bool)
        present_N[self.present] = True
        return Column(_cells(self.cells), _cells(self.elements), present_N)


def _collect(found: defaultdict[str, _Collected], row: int, value: Json, name: str = "") -> None:
    """Put a value, and what is in it, where it belongs."""
    if value is None or (name not in found and len(found) > MAX_FIELDS):
        return
    here = found[name]
    here.present.append(row)
    if isinstance(value, dict):
        for key, entry in value.items():
            _collect(found, row, entry, f"{name}.{key}")
    elif isinstance(value, list):
        for element in value:
            if isinstance(element, bool | int | float | str):
                _put(here.elements, row, element)
    else:
        _put(here.cells, row, value)


def _put(typed: defaultdict[Kind, _Typed], row: int, value: bool | int | float | str) -> None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = as_double(value)
    kinds: Mapping[type, Kind] = {bool: "boolean", int: "whole", float: "real", str: "text"}
    cells = typed[kinds[type(value)]]
    cells.rows.append(row)
    cells.values.append(value)


def _cells(typed: Mapping[Kind, _Typed]) -> tuple[Cells, ...]:
    return tuple(
        Cells(
            kind,
            pa.chunked_array([pa.array(found.values, type=_TYPES[kind])]),
            np.array(found.rows, np.int64),
        )
        for kind, found in typed.items()
    )
