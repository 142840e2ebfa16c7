"""Columns of JSON: decoded block by block into what a whole would give, and counted as memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pytest

from cots_model.errors import GalleryError
from index_builder import filter_json
from index_builder.filter_cells import Cells, Column
from index_builder.filter_columns import MetadataColumns
from index_builder.filter_json import decode_column
from index_builder.gallery import read_manifest
from index_builder.indexes.base import go_on
from index_builder.items import MetadataColumn, read_items
from index_builder.manifest import ITEMS_FILE
from index_builder.version_memory import version_bytes
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors

VALUES: list[Any] = [1, 2.5, "a", True, None, ["x", 3, None], {"a": 1, "b": {"c": "d"}}, [], {}]


def column(values: list[Any]) -> MetadataColumn:
    texts = [None if value is None else json.dumps(value) for value in values]
    return MetadataColumn("tags", pa.chunked_array([pa.array(texts, pa.string())]), True)


def all_cells(found: Mapping[str, Column]) -> Iterator[Cells]:
    for one in found.values():
        yield from (*one.cells, *one.elements)


def content(found: Mapping[str, Column]) -> dict[str, Any]:
    def told(cells: tuple[Cells, ...]) -> list[tuple[str, list, list]]:
        return [(c.kind, c.values.to_pylist(), c.rows.tolist()) for c in cells]

    return {
        name: (told(one.cells), told(one.elements), one.rows_n.tolist())
        for name, one in found.items()
    }


@pytest.mark.parametrize("block_rows", [1, 3, 64])
def test_blocks_give_what_the_whole_gives(monkeypatch, block_rows) -> None:
    values = VALUES * 7
    whole = content(decode_column(column(values), len(values), go_on))
    monkeypatch.setattr(filter_json, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(filter_json, "_SETTLED_CHARS", 20)
    monkeypatch.setattr(filter_json, "_SETTLED_VALUES", 2)
    calls: list[int] = []
    found = decode_column(column(values), len(values), lambda: calls.append(1))
    assert content(found) == whole
    assert len(calls) == -(-len(values) // block_rows)
    assert set(found) == {"", ".a", ".b", ".b.c"}
    assert found[".b.c"].present_N(len(values)).tolist() == [
        isinstance(value, dict) and "b" in value for value in values
    ]


def test_long_texts_are_blocks_of_their_own() -> None:
    values = [list(range(1000)) for _ in range(50)]
    text_chars = len(json.dumps(values[0]))
    pieces: list[int] = []
    found = decode_column(column(values), 50, lambda: pieces.append(1))
    assert len(pieces) >= 50 * text_chars // (2 * filter_json.BLOCK_CHARS)
    [elements] = found[""].elements
    assert elements.values.to_pylist() == values[0] * 50
    assert elements.rows.tolist() == [row for row in range(50) for _ in range(1000)]


def test_field_takes_room_for_the_rows_that_have_it_alone() -> None:
    """Not for all rows: a column may have thousands of fields."""
    values = [{f"field {n}": n} for n in range(500)]
    found = decode_column(column(values), len(values), go_on)
    assert len(found) == 501
    assert sum(one.rows_n.nbytes for one in found.values()) == 2 * 500 * 8


def test_column_without_any_value_has_no_fields() -> None:
    assert decode_column(column([None] * 3), 3, go_on) == {}


@pytest.mark.parametrize("text", ["[1,", "", "nonsense"])
def test_text_that_is_no_json_is_named_by_its_row(text) -> None:
    values = pa.chunked_array([pa.array([None, "1", text], pa.string())])
    columns = MetadataColumns([MetadataColumn("tags", values, True)], 3)
    with pytest.raises(GalleryError, match="column 'tags' holds what is no JSON in row 2"):
        columns.decode()
    with pytest.raises(GalleryError, match="in row 2"):
        columns.find("tags", go_on)


@pytest.mark.parametrize("distinct", [1, 20])
def test_long_texts_that_repeat_count_for_each_row(tmp_path, distinct) -> None:
    """In the file they are there once, in memory in every row."""
    lists = [list(range(n, n + 500)) for n in range(distinct)]
    items = [
        dataclasses.replace(item, metadata={"tags": lists[n % distinct], "note": "x" * 1000})
        for n, item in enumerate(plain_items([f"{n:05d}" for n in range(2000)]))
    ]
    folder, manifest = read_manifest(publish_gallery(tmp_path / "g", unit_vectors(2000), items))
    found = {one.name: one for one in read_items(folder / ITEMS_FILE).metadata_columns()}
    decoded = decode_column(found["tags"], 2000, go_on)
    held = sum(one.values.nbytes for one in found.values())
    held += sum(c.values.nbytes + c.rows.nbytes for c in all_cells(decoded))
    assert held <= version_bytes(folder, manifest) <= 3 * held


@pytest.mark.parametrize("distinct", [3, 3000])
def test_memory_of_a_version_counts_what_filters_make_of_its_metadata(tmp_path, distinct) -> None:
    items = [
        dataclasses.replace(
            item,
            metadata={
                "tags": [f"tag {n % distinct}", "red", 7],
                "exif": {"iso": n % distinct, "lens": {"name": "wide"}},
            },
        )
        for n, item in enumerate(plain_items([f"{n:05d}" for n in range(3000)]))
    ]
    root = publish_gallery(tmp_path / "g", unit_vectors(3000), items)
    folder, manifest = read_manifest(root)
    columns = read_items(folder / ITEMS_FILE).metadata_columns()
    assert [one.name for one in columns if one.is_json] == ["exif", "tags"]
    decoded = [decode_column(one, 3000, go_on) for one in columns]
    held = sum(one.values.nbytes for one in columns)
    held += sum(one.rows_n.nbytes for found in decoded for one in found.values())
    held += sum(c.values.nbytes + c.rows.nbytes for found in decoded for c in all_cells(found))
    bare = [dataclasses.replace(item, metadata={}) for item in items]
    plain = publish_gallery(tmp_path / "plain", unit_vectors(3000), bare)
    without = version_bytes(*read_manifest(plain))
    assert held <= version_bytes(folder, manifest) - without <= 5 * held
