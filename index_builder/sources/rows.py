"""Rows of csv, tsv, jsonl, parquet and json files, from a disk or a url, a few at a time.

Only a json list is read whole. A csv file is read twice: once to see what each column holds, as
one word at its end may make a column of numbers one of texts.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from cots_model.errors import InputError
from index_builder.location import ContentError
from index_builder.sources.places import open_place, suffix_of
from index_builder.sources.texts import TEXT_KEYS

ROW_SUFFIXES = frozenset([".csv", ".tsv", ".jsonl", ".parquet"])
"""Manifests that are read a few rows at a time; `.json` is one too if it holds a list."""

_BATCH_ROWS = 1024
_BLOCK_BYTES = 4 * 1024 * 1024
_MAX_LINE = 16 * 1024 * 1024
_WORD_COLUMNS = frozenset({"id", *TEXT_KEYS})
_INT = re.compile(r"^[+-]?(?:0|[1-9][0-9]{0,17})$")
_DIGITS = re.compile(r"^[+-]?[0-9]+$")  # if it is no _INT, it is a name: 007
_FLOAT = re.compile(r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$")
_BOOLS = {"true": True, "false": False}
_DAMAGE = (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException)


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        number: its place, from 1; a heading does not count.
        values: by column.
        problem: what is wrong with the row itself; its values then mean nothing.
    """

    number: int
    values: dict[str, object] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class RowFile:
    """A file of rows.

    Attributes:
        place: the file, for messages.
        columns: what its heading, schema or first row has.
        rows: reads all rows, each time from the start; raises InputError where the file breaks.
    """

    place: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]


def open_rows(place: str, *, words: frozenset[str] = frozenset()) -> RowFile:
    """Open a csv, tsv, jsonl or parquet file and read its heading.

    Args:
        place: absolute path or url.
        words: columns whose values stay texts even if they look like numbers.

    Raises:
        InputError: if it cannot be read or is damaged.
    """
    suffix = suffix_of(place)
    if suffix == ".parquet":
        columns, read = _parquet(place)
    elif suffix == ".jsonl":
        columns, read = _jsonl(place)
    else:
        columns, read = _csv(place, "\t" if suffix == ".tsv" else ",", words | _WORD_COLUMNS)
    return RowFile(place, columns, lambda: _guarded(place, read))


def rows_of_list(place: str, values: Sequence[object]) -> RowFile:
    """The rows of a json list that was read whole."""
    first = next((value for value in values if isinstance(value, dict)), {})
    rows = [_row(number, value) for number, value in enumerate(values, start=1)]
    return RowFile(place, tuple(map(str, first)), lambda: iter(rows))


def _guarded(place: str, read: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    number = 0
    try:
        for row in read():
            number = row.number
            yield row
    except ContentError:
        raise
    except _DAMAGE as err:
        raise InputError(
            f"{place} cannot be read beyond row {number} ({_one_line(err)}); write it again, "
            "nothing was changed"
        ) from err


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())


def _row(number: int, value: object) -> Row:
    if isinstance(value, dict):
        return Row(number, {str(key): one for key, one in value.items()})
    shown = f"{type(value).__name__} {value!r}"[:60]
    return Row(number, problem=f"is {shown}; an object with columns is accepted")


def _parquet(place: str) -> tuple[tuple[str, ...], Callable[[], Iterator[Row]]]:
    def read() -> Iterator[Row]:
        number = 0
        handle, _ = open_place(place, block_bytes=_BLOCK_BYTES)
        with handle, pq.ParquetFile(handle) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)

    try:
        handle, _ = open_place(place, block_bytes=_BLOCK_BYTES)
        with handle:
            schema = pq.read_schema(handle)
    except (OSError, ValueError, pa.ArrowException) as err:
        raise InputError(
            f"{place} cannot be read as parquet ({_one_line(err)}); write it again"
        ) from err
    columns = tuple(entry.name for entry in schema if not _is_bytes(entry.type))
    return columns, read


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, such as pictures, which are no metadata."""
    if pa.types.is_struct(kind):
        return any(_is_bytes(kind.field(number).type) for number in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_bytes(kind.value_type)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _jsonl(place: str) -> tuple[tuple[str, ...], Callable[[], Iterator[Row]]]:
    def read() -> Iterator[Row]:
        number = 0
        with _open_text(place) as text:
            for line in _lines(text):
                if line.strip():
                    number += 1
                    yield _row(number, json.loads(line))

    first = next(_guarded(place, read), None)
    return tuple(first.values) if first else (), read


def _csv(
    place: str, delimiter: str, words: frozenset[str]
) -> tuple[tuple[str, ...], Callable[[], Iterator[Row]]]:
    def lines() -> Iterator[Row]:
        with _open_text(place) as text:
            csv.field_size_limit(max(csv.field_size_limit(), _MAX_LINE))  # 128 KiB by default
            reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
            for number, cells in enumerate(reader):
                if number and len(cells) not in (0, len(heading)):
                    why = f"has {len(cells)} cells, but the heading {len(heading)}"
                    yield Row(number, problem=f"{why}; as many are accepted")
                elif number:
                    cells_by = zip(heading, cells, strict=False)
                    yield Row(number, {column: cell or None for column, cell in cells_by})
                else:
                    twice = {cell for cell in cells if cells.count(cell) > 1}
                    fault = f"has {sorted(twice)} twice; name each column once" if twice else None
                    yield Row(0, dict.fromkeys(cells), fault)

    def read() -> Iterator[Row]:
        kinds = _column_kinds(rows_of(lines()), words)
        for row in rows_of(lines()):
            values = {k: _typed(str(v), kinds.get(k)) for k, v in row.values.items() if v}
            yield Row(row.number, values, row.problem)

    def rows_of(rows: Iterator[Row]) -> Iterator[Row]:
        next(rows, None)
        yield from (row for row in rows if row.values or row.problem)

    heading: tuple[str, ...] = ()
    first = next(_guarded(place, lines), None)
    heading = tuple(first.values) if first else ()
    if first is not None and first.problem:
        raise InputError(f"{place}: the heading {first.problem}")
    return heading, read


def _column_kinds(rows: Iterator[Row], words: frozenset[str]) -> dict[str, type]:
    """The type of each column: bool, int or float if every value is one, else str."""
    found: dict[str, type] = {}
    for row in rows:
        for column, value in row.values.items():
            known = found.get(column)
            if value is not None and known is not str:
                kind = str if column in words else _kind_of(str(value))
                found[column] = _wider(known, kind)
    return found


def _kind_of(value: str) -> type:
    if _INT.match(value):
        return int
    if _FLOAT.match(value) and not _DIGITS.match(value):
        return float
    return bool if value.lower() in _BOOLS else str


def _wider(known: type | None, kind: type) -> type:
    if known in (None, kind):
        return kind
    return float if {known, kind} == {int, float} else str


def _typed(value: str, kind: type | None) -> object:
    if kind is bool:
        return _BOOLS[value.lower()]
    return value if kind in (None, str) else kind(value)


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """The lines, of which none is read without end."""
    while line := text.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise ValueError(f"a line of over {_MAX_LINE:,} characters")
        yield line


def _open_text(place: str) -> io.TextIOWrapper:
    handle, _ = open_place(place, block_bytes=_BLOCK_BYTES)
    return io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
