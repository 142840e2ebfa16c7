"""Conditions on metadata, from JSON to a small checked tree.

    parse_filter({"category": {"in": ["beach", "lake"]}, "not": {"year": {"lt": 2020}}})

The conditions of an object must all hold. `and` and `or` take lists of objects, `not` takes one.
Whether the columns exist and hold such values is found out when rows are looked for
(`filter_rows`); docs/filters.md says what each operator means.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cots_model.errors import InputError
from cots_model.faults import json_kind, shortened

MAX_DEPTH = 16
"""Deepest nesting of `and`, `or` and `not`."""
MAX_CONDITIONS = 256
MAX_VALUES = 10_000
"""Values of all conditions together."""
MAX_NAME = 1000
"""Longest name of a column, in characters."""

Scalar: TypeAlias = "bool | int | float | str"
Test = Literal["in", "gt", "gte", "lt", "lte", "exists", "contains"]
OPERATORS = ("eq", "ne", "in", "nin", "gt", "gte", "lt", "lte", "exists", "contains")

_TESTS: Mapping[str, tuple[Test, bool]] = {  # the test, and whether it must fail
    "eq": ("in", False),
    "ne": ("in", True),
    "in": ("in", False),
    "nin": ("in", True),
    "gt": ("gt", False),
    "gte": ("gte", False),
    "lt": ("lt", False),
    "lte": ("lte", False),
    "exists": ("exists", False),
    "contains": ("contains", False),
}
_EXAMPLE = '{"year": {"gte": 2020}}'


class FilterError(InputError):
    """A filter that cannot be used.

    Attributes:
        place: the part at fault, such as `filter.year.gte`.
    """

    def __init__(self, place: str, message: str) -> None:
        super().__init__(f"{place} {message}")
        self.place = place


@dataclass(frozen=True)
class Condition:
    """One test of one column; what it is given is told at `place`, for messages."""

    column: str
    test: Test
    values: tuple[Scalar, ...]
    place: str


@dataclass(frozen=True)
class AllOf:
    """Every part holds; of no parts, always."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Node


Node: TypeAlias = Condition | AllOf | AnyOf | Not


@dataclass(frozen=True)
class Filter:
    """A parsed filter.

    Attributes:
        root: its conditions.
        key: hash of what it was parsed from; equal filters have equal keys.
    """

    root: Node
    key: str


def parse_filter(raw: object, *, place: str = "filter") -> Filter:
    """Check the form of a filter.

    Args:
        raw: what JSON gave.
        place: what messages call it.

    Raises:
        FilterError: naming the part at fault and what is accepted there.
    """
    root = _Parser().group(raw, place, depth=1)
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"))
    return Filter(root, hashlib.sha256(text.encode()).hexdigest())


class _Parser:
    """Counts what a filter holds while it is read."""

    def __init__(self) -> None:
        self._num_conditions = 0
        self._num_values = 0

    def group(self, raw: object, place: str, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise FilterError(place, f"is nested more than {MAX_DEPTH} deep; simplify the filter")
        if not isinstance(raw, dict):
            raise FilterError(place, f"is {json_kind(raw)}; accepted is an object like {_EXAMPLE}")
        return _all_of(list(self._parts(raw, place, depth)))

    def _parts(self, raw: Mapping[str, object], place: str, depth: int) -> Iterator[Node]:
        for name, value in raw.items():
            at = f"{place}.{shortened(name)}"
            if name == "and":
                yield AllOf(self._list(value, at, depth))
            elif name == "or":
                yield AnyOf(self._list(value, at, depth))
            elif name == "not":
                yield Not(self.group(value, at, depth + 1))
            else:
                yield from self._conditions(name, value, at)

    def _list(self, raw: object, place: str, depth: int) -> tuple[Node, ...]:
        if not isinstance(raw, list) or not raw:
            what = "an empty list" if raw == [] else json_kind(raw)
            raise FilterError(place, f"is {what}; accepted is a list like [{_EXAMPLE}]")
        return tuple(self.group(value, f"{place}.{n}", depth + 1) for n, value in enumerate(raw))

    def _conditions(self, column: str, raw: object, place: str) -> Iterator[Node]:
        accepted = f"accepted are {', '.join(OPERATORS)}"
        if len(column) > MAX_NAME:
            raise FilterError(place, f"is longer than {MAX_NAME:,} characters; name a column")
        if not isinstance(raw, dict) or not raw:
            what = "an object without operators" if raw == {} else json_kind(raw)
            raise FilterError(place, f'is {what}; {accepted}, as in {{"eq": "beach"}}')
        for operator, operand in raw.items():
            at = f"{place}.{shortened(operator)}"
            if operator not in _TESTS:
                raise FilterError(at, f"is no operator; {accepted}")
            test, negated = _TESTS[operator]
            condition = Condition(column, test, self._values(operator, operand, at), at)
            yield Not(condition) if negated else condition

    def _values(self, operator: str, operand: object, place: str) -> tuple[Scalar, ...]:
        values = operand if operator in ("in", "nin") else [operand]
        if not isinstance(values, list):
            raise FilterError(place, f"is {json_kind(operand)}; accepted is a list of values")
        self._count(len(values), place)
        listed = operator in ("in", "nin")
        return tuple(
            _value(operator, value, f"{place}.{n}" if listed else place)
            for n, value in enumerate(values)
        )

    def _count(self, num_values: int, place: str) -> None:
        self._num_conditions += 1
        self._num_values += num_values
        if self._num_conditions > MAX_CONDITIONS:
            raise FilterError(place, f"is one condition too many; at most {MAX_CONDITIONS:,}")
        if self._num_values > MAX_VALUES:
            raise FilterError(place, f"gives too many values; at most {MAX_VALUES:,} in all")


def _all_of(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _value(operator: str, value: object, place: str) -> Scalar:
    if operator == "exists" and not isinstance(value, bool):
        raise FilterError(place, f"is {json_kind(value)}; accepted is true or false")
    if value is None:
        raise FilterError(place, 'is null; to find missing values use {"exists": false}')
    if operator in ("gt", "gte", "lt", "lte") and not _is_ordered(value):
        raise FilterError(place, f"is {json_kind(value)}; accepted is a number or a text")
    if not isinstance(value, bool | int | float | str):
        raise FilterError(
            place, f"is {json_kind(value)}; accepted is a number, a text or a boolean"
        )
    if isinstance(value, int) and not isinstance(value, bool):
        value = _within_64_bits(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError(place, "is not a finite number")
    if isinstance(value, str) and not _is_unicode(value):
        raise FilterError(place, "holds half a surrogate pair; accepted is Unicode text")
    return value


def _within_64_bits(number: int) -> int | float:
    """Larger ones are doubles, as they are in the columns."""
    return number if -(2**63) <= number < 2**63 else as_double(number)


def as_double(number: int) -> float:
    """The nearest double; infinity beyond the largest."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _is_ordered(value: object) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
