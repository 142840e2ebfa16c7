"""The tests of filters over the cells of a column, exact for all numbers.

Whole numbers and reals are compared by their values, not as floats: 2**53 + 1 is above 2.0**53.

Shape letters: C cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cots_model.faults import json_kind
from index_builder.filter import Condition, FilterError, Scalar, Test
from index_builder.filter_cells import Cells, Column, Kind, Mask

_LEAST, _MOST = -(2**63), 2**63 - 1
_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "gt": pc.greater,
    "gte": pc.greater_equal,
    "lt": pc.less,
    "lte": pc.less_equal,
}
_ROUNDED_UP: Mapping[Test, Test] = {"gt": "gte", "lte": "lt"}
_ROUNDED_DOWN: Mapping[Test, Test] = {"gte": "gt", "lt": "lte"}
_KINDS: Mapping[type, frozenset[Kind]] = {
    bool: frozenset({"boolean"}),
    int: frozenset({"whole", "real"}),
    float: frozenset({"whole", "real"}),
    str: frozenset({"text"}),
}
_WORDS: Mapping[Kind, str] = {
    "whole": "numbers",
    "real": "numbers",
    "text": "texts",
    "boolean": "booleans",
}


def check_types(condition: Condition, column: Column) -> None:
    """Refuse values of a type that the column has nowhere.

    Raises:
        FilterError: saying what it holds.
    """
    held = frozenset(cells.kind for cells in column.cells)
    if condition.test == "contains":
        accepted = (held & {"text"}) | {cells.kind for cells in column.elements}
    elif condition.test == "in":
        accepted = held
    else:
        accepted = held - {"boolean"}
    for value in condition.values:
        if not accepted & _KINDS[type(value)]:
            what = _held(column, held) or "objects or empty lists"
            raise FilterError(
                condition.place,
                f"is given {json_kind(value)}, and the column holds {what}; "
                f"{_remedy(condition.test, held, accepted)}",
            )


def _held(column: Column, held: frozenset[Kind]) -> str:
    words = {_WORDS[kind] for kind in held}
    words |= {f"lists of {_WORDS[cells.kind]}" for cells in column.elements}
    return " and ".join(sorted(words))


def _remedy(test: Test, held: frozenset[Kind], accepted: frozenset[Kind]) -> str:
    if accepted:
        return f"accepted are {' and '.join(sorted({_WORDS[kind] for kind in accepted}))}"
    if test == "contains":
        return "contains is for texts and lists"
    if held:
        return "booleans have eq and ne"
    return "lists have contains, objects have fields (column.field), and both have exists"


def find_cells(condition: Condition, column: Column) -> Iterator[tuple[Cells, Mask]]:
    """The cells that a test looks at, and which of them pass `[C]`; missing values do not."""
    values, test = condition.values, condition.test
    if test == "contains":
        for cells in column.elements:
            yield cells, _mask(_is_in(cells, values))
        for cells in column.cells:
            if cells.kind == "text" and isinstance(values[0], str):
                yield cells, _mask(pc.match_substring(cells.values, values[0]))
        return
    for cells in column.cells:
        if test == "in":
            yield cells, _mask(_is_in(cells, values))
        elif cells.kind in _KINDS[type(values[0])]:
            yield cells, _mask(_compared(cells, test, values[0]))


def _mask(found: pa.ChunkedArray) -> Mask:
    mask_C: Mask = pc.fill_null(found, False).to_numpy()
    return mask_C


def _is_in(cells: Cells, values: Sequence[Scalar]) -> pa.ChunkedArray:
    members = [
        member
        for value in values
        if cells.kind in _KINDS[type(value)]
        for member in _members(cells.kind, value)
    ]
    type_ = cells.values.type
    if len(members) == 1:
        return pc.equal(cells.values, pa.scalar(members[0], type_))
    return pc.is_in(cells.values, value_set=pa.array(members, type_))


def _members(kind: Kind, value: Scalar) -> list[Scalar]:
    """The values of a type that equal another; none if it has none."""
    if kind == "whole":
        return [int(value)] if value == int(value) and _LEAST <= int(value) <= _MOST else []
    if kind == "real":
        near = float(value)
        return [] if near != value else [near, -near] if near == 0 else [near]
    return [value]


def _compared(cells: Cells, test: Test, value: Scalar) -> pa.ChunkedArray:
    if cells.kind == "whole":
        test, value = _among_whole(test, value)
    elif cells.kind == "real":
        test, value = _among_reals(test, value)
    return _COMPARE[test](cells.values, pa.scalar(value, cells.values.type))


def _among_whole(test: Test, value: Any) -> tuple[Test, int]:
    """The same test with a number of 64 bits."""
    bound = math.floor(value) if test in ("gt", "lte") else math.ceil(value)
    if bound > _MOST:
        return ("gt" if test in ("gt", "gte") else "lte"), _MOST
    if bound < _LEAST:
        return ("gte" if test in ("gt", "gte") else "lt"), _LEAST
    return test, bound


def _among_reals(test: Test, value: Any) -> tuple[Test, float]:
    """The same test with a float, whichever way the number was rounded."""
    near = float(value)
    if near > value:
        return _ROUNDED_UP.get(test, test), near
    if near < value:
        return _ROUNDED_DOWN.get(test, test), near
    return test, near
