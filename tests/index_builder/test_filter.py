"""Filters: what they mean, beside a loop over the items; and what is refused, and where."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cots_model.errors import InputError
from index_builder import filter_columns, filter_json, filter_rows
from index_builder.filter import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, FilterError, parse_filter
from index_builder.filter_rows import RowFilters
from index_builder.items import Item, read_items, write_items
from tests.index_builder.stores import plain_items

COUNT = 400
NUMBERS = [0, -0.0, 1, 1.5, -3, 2020, 2020.0, 2**53, 2**53 + 1, float(2**53), -(2**63), 2**63 - 1]
HUGE = [2**63, -(2**63) - 1, 2**80, 1e300, 5e-324]
TEXTS = ["", "a", "b", "ab", "B", "ünï", "日本", "🙂", "a.b", '"\\', "true", "1"]
NESTED = ("exif.iso", "exif.lens", "exif.deep.x")


def _metadata(rng: np.random.Generator) -> dict[str, Any]:
    def pick(pool: list) -> Any:
        return pool[int(rng.integers(len(pool)))]

    whole = [n for n in NUMBERS if isinstance(n, int)]
    real = [float(n) for n in NUMBERS]
    found = {
        "year": pick(whole),
        "price": pick(real),
        "name": pick(TEXTS),
        "flag": pick([True, False]),
        "mixed": pick([*NUMBERS, *HUGE, *TEXTS, True, False, None, [], {}, [1, "a"]]),
        "tags": [pick([*NUMBERS, *TEXTS, True, None, [1]]) for _ in range(rng.integers(4))],
        "exif": {
            "iso": pick([*NUMBERS, None, "a"]),
            "lens": pick([*TEXTS, None]),
            "deep": {"x": pick([1, 2.5, "a", ["a", 1]])},
        },
    }
    return {key: value for key, value in found.items() if rng.random() > 0.3 and value is not None}


def _lookup(metadata: dict[str, Any], name: str) -> Any:
    value: Any = metadata
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _same(one: Any, other: Any) -> bool:
    """As JSON types go: a boolean is no number."""
    kinds = (bool, (int, float), str)
    groups = [
        next((n for n, k in enumerate(kinds) if isinstance(v, k)), None) for v in (one, other)
    ]
    return groups[0] is not None and groups[0] == groups[1] and _double(one) == _double(other)


def _double(value: Any) -> Any:
    """Whole numbers over 64 bits are kept as doubles."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    return value


def _tested(cell: Any, operator: str, given: Any) -> bool:
    match operator:
        case "exists":
            return (cell is not None) == given
        case "eq":
            return _same(cell, given)
        case "ne":
            return not _same(cell, given)
        case "in":
            return any(_same(cell, value) for value in given)
        case "nin":
            return not any(_same(cell, value) for value in given)
        case "contains":
            if isinstance(cell, list):
                return any(_same(element, given) for element in cell)
            return isinstance(cell, str) and isinstance(given, str) and given in cell
    ordered = isinstance(cell, str) == isinstance(given, str) and not isinstance(cell, bool)
    if not ordered or not isinstance(cell, int | float | str):
        return False
    cell, given = _double(cell), _double(given)
    return {
        "gt": cell > given,
        "gte": cell >= given,
        "lt": cell < given,
        "lte": cell <= given,
    }[operator]


def holds(raw: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """The meaning of filters, by a loop."""
    for name, value in raw.items():
        if name == "and":
            good = all(holds(part, metadata) for part in value)
        elif name == "or":
            good = any(holds(part, metadata) for part in value)
        elif name == "not":
            good = not holds(value, metadata)
        else:
            cell = _lookup(metadata, name)
            good = all(_tested(cell, operator, given) for operator, given in value.items())
        if not good:
            return False
    return True


def random_filter(rng: np.random.Generator, items: list[Item], depth: int = 0) -> dict[str, Any]:
    """A filter whose values are of types that its columns hold."""
    if depth < 3 and rng.random() < 0.5:
        kind = ["and", "or", "not"][int(rng.integers(3))]
        parts = [random_filter(rng, items, depth + 1) for _ in range(rng.integers(1, 4))]
        return {kind: parts[0] if kind == "not" else parts}
    names = ["year", "price", "name", "flag", "mixed", "tags", "exif", *NESTED]
    return dict(_condition(rng, items, names[int(rng.integers(len(names)))]) for _ in range(2))


def _condition(rng: np.random.Generator, items: list[Item], name: str) -> tuple[str, dict]:
    cells = [_lookup(item.metadata, name) for item in items]
    scalars = [cell for cell in cells if isinstance(cell, bool | int | float | str)]
    elements = [e for cell in cells if isinstance(cell, list) for e in cell]
    elements = [e for e in elements if isinstance(e, bool | int | float | str)]
    texts = [cell for cell in scalars if isinstance(cell, str)]
    ordered = [cell for cell in scalars if not isinstance(cell, bool)]
    able = {"exists": [True, False]}
    if scalars:
        able |= dict.fromkeys(("eq", "ne", "in", "nin"), scalars)
    if ordered:
        able |= dict.fromkeys(("gt", "gte", "lt", "lte"), ordered)
    if elements or texts:
        able["contains"] = elements + texts
    operator = list(able)[int(rng.integers(len(able)))]
    pool = able[operator]
    picked = [pool[int(rng.integers(len(pool)))] for _ in range(int(rng.integers(4)) + 1)]
    return name, {operator: picked if operator in ("in", "nin") else picked[0]}


@pytest.fixture(scope="module")
def items() -> list[Item]:
    rng = np.random.default_rng(5)
    found = plain_items([f"{n:04d}" for n in range(COUNT)])
    return [Item(**{**vars(item), "metadata": _metadata(rng)}) for item in found]


def opened(items: list[Item], path: Path) -> RowFilters:
    write_items(items, path / "items.parquet")
    return RowFilters(read_items(path / "items.parquet"))


@pytest.fixture(scope="module")
def filters(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> RowFilters:
    return opened(items, tmp_path_factory.mktemp("filters"))


def rows(filters: RowFilters, raw: object) -> list[int]:
    found = filters.rows(parse_filter(raw))
    assert found.dtype == np.int64
    return found.tolist()


def expected(items: list[Item], raw: dict[str, Any]) -> list[int]:
    return [row for row, item in enumerate(items) if holds(raw, item.metadata)]


@pytest.mark.parametrize("seed", range(8))
def test_filters_find_what_a_loop_finds(filters, items, seed):
    rng = np.random.default_rng(seed)
    sizes = set()
    for _ in range(60):
        raw = random_filter(rng, items)
        found = rows(filters, raw)
        assert found == expected(items, raw), raw
        sizes.add(len(found))
    assert len(sizes) > 20


@pytest.mark.parametrize("column", ["year", "price", "mixed", "exif.iso"])
def test_numbers_are_compared_exactly(filters, items, column):
    edges = [*NUMBERS, *HUGE, 2**53 - 1, 2**53 + 2, 0.5, -0.5, 1e308, -1e308]
    for value in edges:
        for operator in ("eq", "ne", "gt", "gte", "lt", "lte"):
            raw = {column: {operator: value}}
            assert rows(filters, raw) == expected(items, raw), raw


def test_missing_values_pass_no_test_but_a_negated_one(filters, items):
    missing = {row for row, item in enumerate(items) if "year" not in item.metadata}
    assert missing
    for operator, value in (("eq", 1), ("in", [1, 2]), ("gt", -1e9), ("lte", 1e9)):
        assert not missing & set(rows(filters, {"year": {operator: value}}))
        assert missing <= set(rows(filters, {"not": {"year": {operator: value}}}))
    for operator, value in (("ne", 1), ("nin", [1, 2])):
        assert missing <= set(rows(filters, {"year": {operator: value}}))
        strict = {"year": {operator: value, "exists": True}}
        assert not missing & set(rows(filters, strict))
    assert set(rows(filters, {"year": {"exists": False}})) == missing


def test_a_filter_of_nothing_leaves_everything(filters):
    assert rows(filters, {}) == list(range(COUNT))
    assert rows(filters, {"year": {"in": []}}) == []
    assert rows(filters, {"year": {"nin": []}}) == list(range(COUNT))


def test_the_longest_name_that_is_a_column_is_taken(tmp_path):
    metadata = [
        {"a.b": 1, "a": {"b": 2, "c": 3}},
        {"a": {"b": 2, "b.c": 4, "": 5}},
        {"": {"x": 6}, "a": {"b": {"c": 7}}},
    ]
    items = plain_items(["0", "1", "2"])
    items = [Item(**{**vars(i), "metadata": m}) for i, m in zip(items, metadata, strict=True)]
    filters = opened(items, tmp_path)
    assert rows(filters, {"a.b": {"eq": 1}}) == [0]
    assert rows(filters, {"a.c": {"eq": 3}}) == [0]
    assert rows(filters, {"a.b.c": {"gte": 4}}) == [1, 2]
    assert rows(filters, {"a.": {"eq": 5}}) == [1]
    assert rows(filters, {".x": {"eq": 6}}) == [2]
    assert rows(filters, {"a": {"exists": True}}) == [0, 1, 2]


REFUSED: list[tuple[object, str, str]] = [
    ([], "filter", "is a list; accepted is an object"),
    ("year", "filter", "is a text"),
    (None, "filter", "is null"),
    ({"year": 2020}, "filter.year", r'is a number; accepted are eq, .*as in {"eq": "beach"}'),
    ({"year": {}}, "filter.year", "an object without operators"),
    ({"year": {"above": 1}}, "filter.year.above", "no operator; accepted are eq, ne, in"),
    ({"year": {"$gt": 1}}, "filter.year.$gt", "no operator"),
    ({"year": {"eq": None}}, "filter.year.eq", '{"exists": false}'),
    ({"year": {"eq": [1]}}, "filter.year.eq", "is a list; accepted is a number, a text"),
    ({"year": {"eq": float("nan")}}, "filter.year.eq", "not a finite number"),
    ({"year": {"eq": 10**400}}, "filter.year.eq", "not a finite number"),
    ({"year": {"in": 1}}, "filter.year.in", "is a number; accepted is a list"),
    ({"year": {"in": [1, {}]}}, "filter.year.in.1", "is an object"),
    ({"year": {"gt": True}}, "filter.year.gt", "is a boolean; accepted is a number or a text"),
    ({"year": {"exists": 1}}, "filter.year.exists", "accepted is true or false"),
    ({"name": {"eq": "\ud800"}}, "filter.name.eq", "surrogate"),
    ({"and": {}}, "filter.and", "is an object; accepted is a list"),
    ({"or": []}, "filter.or", "an empty list"),
    ({"or": [{"year": {"eq": 1}}, 3]}, "filter.or.1", "is a number"),
    ({"not": [{"year": {"eq": 1}}]}, "filter.not", "is a list"),
    ({"x" * 1001: {"eq": 1}}, f"filter.{'x' * 59}…", "longer than 1,000"),
    ({"yeer": {"gte": 1}}, "filter.yeer.gte", "no item has; the columns are 'exif', 'flag', "),
    ({"exif.isso": {"gte": 1}}, "filter.exif.isso.gte", "no item has"),
    ({"year.x": {"gte": 1}}, "filter.year.x.gte", "no item has"),
    ({"year": {"gte": "2020"}}, "filter.year.gte", "given a text, and the column holds numbers"),
    ({"name": {"in": ["a", 1]}}, "filter.name.in", "given a number, and the column holds texts"),
    ({"flag": {"eq": 1}}, "filter.flag.eq", "accepted are booleans"),
    ({"flag": {"lt": "a"}}, "filter.flag.lt", "and the column holds booleans; booleans have eq"),
    ({"year": {"contains": 1}}, "filter.year.contains", "contains is for texts and lists"),
    ({"name": {"contains": 1}}, "filter.name.contains", "accepted are texts"),
    ({"exif": {"eq": 1}}, "filter.exif.eq", "holds objects or empty lists; lists have contains"),
    ({"tags": {"eq": "a"}}, "filter.tags.eq", "holds lists of .*texts; lists have contains"),
    ({"or": [{"year": {"gt": 0}}, {"not": {"no": {"eq": 1}}}]}, "filter.or.1.not.no.eq", "no item"),
]


@pytest.mark.parametrize(("raw", "place", "said"), REFUSED)
def test_what_is_refused_is_named_by_its_place(filters, raw, place, said):
    with pytest.raises(FilterError, match=said) as caught:
        rows(filters, raw)
    assert caught.value.place == place
    assert str(caught.value).startswith(f"{place} ")


def test_depth_and_size_are_limited():
    leaf = {"a": {"eq": 1}}
    deep: dict[str, Any] = leaf
    for _ in range(MAX_DEPTH - 1):
        deep = {"not": deep}
    parse_filter(deep)
    with pytest.raises(FilterError, match=f"nested more than {MAX_DEPTH} deep"):
        parse_filter({"not": deep})
    parse_filter({"and": [leaf] * MAX_CONDITIONS})
    with pytest.raises(FilterError, match="one condition too many"):
        parse_filter({"and": [leaf] * (MAX_CONDITIONS + 1)})
    parse_filter({"a": {"in": [1] * MAX_VALUES}})
    with pytest.raises(FilterError, match="too many values"):
        parse_filter({"a": {"in": [1] * MAX_VALUES, "eq": 1}})


def test_true_and_one_are_different_filters(tmp_path):
    items = plain_items(["0", "1", "2"])
    values: list[Any] = [1, True, 1.0]
    items = [Item(**{**vars(i), "metadata": {"a": v}}) for i, v in zip(items, values, strict=True)]
    filters = opened(items, tmp_path)
    assert rows(filters, {"a": {"eq": 1}}) == [0, 2]
    assert rows(filters, {"a": {"eq": True}}) == [1]
    assert rows(filters, {"a": {"eq": 1}}) == [0, 2]


def test_columns_are_decoded_once_and_masks_kept_within_their_bounds(items, tmp_path, monkeypatch):
    decoded, tested = [], []
    decode, find = filter_columns.decode_column, filter_rows.find_cells
    monkeypatch.setattr(
        filter_columns, "decode_column", lambda *given: decoded.append(1) or decode(*given)
    )
    monkeypatch.setattr(filter_rows, "find_cells", lambda *given: tested.append(1) or find(*given))
    monkeypatch.setattr(filter_rows, "KEPT_BYTES", 3 * COUNT)
    filters = opened(items, tmp_path)
    for value in (1, 2, 3, 1, 2, 3):
        rows(filters, {"mixed": {"eq": value}})
    assert (len(decoded), len(tested)) == (1, 3)
    rows(filters, {"mixed": {"eq": 4}})  # takes the place of 1
    rows(filters, {"mixed": {"eq": 3}})
    assert len(tested) == 4
    rows(filters, {"mixed": {"eq": 1}})
    assert len(tested) == 5


def test_who_waits_for_a_column_may_give_up(items, tmp_path, monkeypatch):
    """The thread that decodes goes on, and its work is kept."""
    gate, begun = threading.Event(), threading.Event()
    decode = filter_columns.decode_column

    def slow(*given):
        begun.set()
        assert gate.wait(30)
        return decode(*given)

    monkeypatch.setattr(filter_columns, "decode_column", slow)
    filters = opened(items, tmp_path)
    raw = {"mixed": {"eq": 1}}
    first = threading.Thread(target=rows, args=(filters, raw))
    first.start()
    assert begun.wait(30)
    calls = []

    def give_up() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        filters.rows(parse_filter(raw), give_up)
    gate.set()
    first.join(30)
    assert rows(filters, raw) == expected(items, raw)


def test_keys_that_are_data_are_no_fields(tmp_path, monkeypatch):
    monkeypatch.setattr(filter_json, "MAX_FIELDS", 50)
    items = plain_items([f"{n:03d}" for n in range(100)])
    items = [
        Item(**{**vars(i), "metadata": {"by_user": {f"user {n}": 1}}}) for n, i in enumerate(items)
    ]
    filters = opened(items, tmp_path)
    assert rows(filters, {"by_user": {"exists": True}}) == list(range(100))
    with pytest.raises(FilterError, match="no item has"):
        rows(filters, {"by_user.user 3": {"eq": 1}})


def test_items_without_metadata_cannot_be_filtered(tmp_path):
    filters = opened(plain_items(["a"]), tmp_path)
    assert rows(filters, {}) == [0]
    with pytest.raises(InputError, match="the items of this gallery have no metadata"):
        rows(filters, {"year": {"eq": 1}})
