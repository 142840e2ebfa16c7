"""A column of JSON texts, decoded once into cells by field and type.

Rows are decoded in blocks, and what a block gave is put into arrays before the next, so that the
objects of Python are never there for the whole column.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cots_model.errors import GalleryError
from index_builder.filter import as_double
from index_builder.filter_cells import TYPES, Cells, Column, Kind
from index_builder.indexes.base import OnBlock
from index_builder.items import Json, MetadataColumn
from index_builder.vectors import Rows

MAX_FIELDS = 10_000
"""Different fields of the objects of one column; of a column with more, none can be named."""

BLOCK_ROWS = 256
BLOCK_CHARS = 32 * 1024
"""So many rows, or so much text, are decoded before others have their turn."""

_SETTLED_CHARS = 8 * BLOCK_CHARS
"""After so much text what it gave is put into arrays: some megabytes of Python's objects."""

_SETTLED_VALUES = 64
"""Fields with fewer values wait: an array costs as much as some dozens of them."""

_KINDS: Mapping[type, Kind] = {bool: "boolean", int: "whole", float: "real", str: "text"}


def decode_column(column: MetadataColumn, num_rows: int, between: OnBlock) -> Mapping[str, Column]:
    """The column itself under the empty name, and `.name` for each field of its objects.

    Args:
        column: of JSON texts.
        num_rows: of the version.
        between: called after each block of rows; a long row is a block of its own.

    Raises:
        GalleryError: if a text is no JSON.
    """
    found: defaultdict[str, _Collected] = defaultdict(_Collected)
    num_chars = unsettled_chars = 0
    for row, text in _texts(column, num_rows):
        if text is not None:
            _collect(found, row, _parse(column, row, text))
            num_chars += len(text)
        if num_chars < BLOCK_CHARS and (row + 1) % BLOCK_ROWS and row + 1 < num_rows:
            continue
        unsettled_chars += num_chars
        num_chars = 0
        if unsettled_chars >= _SETTLED_CHARS:
            unsettled_chars = 0
            for collected in found.values():
                collected.settle(_SETTLED_VALUES)
        between()
    names = list(found) if len(found) <= MAX_FIELDS else [""]  # else keys are data, no names
    return {name: found[name].column() for name in names}


def _texts(column: MetadataColumn, num_rows: int) -> Iterator[tuple[int, str | None]]:
    for start in range(0, num_rows, BLOCK_ROWS):
        yield from enumerate(column.values.slice(start, BLOCK_ROWS).to_pylist(), start)


def _parse(column: MetadataColumn, row: int, text: str) -> Json:
    try:
        value: Json = json.loads(text)
    except ValueError as err:
        raise GalleryError(
            f"the metadata column {column.name!r} holds what is no JSON in row {row} ({err}); "
            "build the gallery again"
        ) from err
    return value


@dataclass
class _Typed:
    """Rows and values of one type: the latest as Python has them, the others in arrays."""

    kind: Kind
    rows: list[int] = field(default_factory=list)
    values: list[Json] = field(default_factory=list)
    row_blocks: list[Rows] = field(default_factory=list)
    value_blocks: list[pa.Array] = field(default_factory=list)

    def settle(self, least: int = 1) -> None:
        """Put the latest into arrays, if there are as many."""
        if len(self.rows) >= least:
            self.row_blocks.append(np.array(self.rows, np.int64))
            self.value_blocks.append(pa.array(self.values, type=TYPES[self.kind]))
            self.rows, self.values = [], []

    def cells(self) -> Cells:
        """All of them."""
        self.settle()
        values = pa.chunked_array(self.value_blocks, type=TYPES[self.kind])
        return Cells(self.kind, values, np.concatenate(self.row_blocks))


@dataclass
class _Collected:
    """What has been seen of one field so far."""

    rows: list[int] = field(default_factory=list)
    row_blocks: list[Rows] = field(default_factory=list)
    cells: dict[Kind, _Typed] = field(default_factory=dict)
    elements: dict[Kind, _Typed] = field(default_factory=dict)

    def settle(self, least: int = 1) -> None:
        """Put the latest into arrays, where there are as many."""
        if len(self.rows) >= least:
            self.row_blocks.append(np.array(self.rows, np.int64))
            self.rows = []
        for typed in (*self.cells.values(), *self.elements.values()):
            typed.settle(least)

    def column(self) -> Column:
        """All of it."""
        self.settle()
        cells = tuple(typed.cells() for typed in self.cells.values())
        elements = tuple(typed.cells() for typed in self.elements.values())
        rows_n = np.concatenate([np.empty(0, np.int64), *self.row_blocks])
        return Column(cells, elements, rows_n)


def _collect(found: defaultdict[str, _Collected], row: int, value: Json, name: str = "") -> None:
    """Put a value, and what is in it, where it belongs."""
    if value is None or (name not in found and len(found) > MAX_FIELDS):
        return
    here = found[name]
    here.rows.append(row)
    if isinstance(value, dict):
        for key, entry in value.items():
            _collect(found, row, entry, f"{name}.{key}")
    elif isinstance(value, list):
        for element in value:
            if isinstance(element, bool | int | float | str):
                _put(here.elements, row, element)
    else:
        _put(here.cells, row, value)


def _put(typed: dict[Kind, _Typed], row: int, value: bool | int | float | str) -> None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = as_double(value)
    kind = _KINDS[type(value)]
    if kind not in typed:
        typed[kind] = _Typed(kind)
    typed[kind].rows.append(row)
    typed[kind].values.append(value)
