"""The items table: what goes in comes out, whatever the metadata."""

import datetime
import json

import pyarrow.parquet as pq
import pytest

from cots_model.errors import GalleryError
from index_builder.items import Item, clean_metadata, read_items, write_items


def item(name: str, **metadata: object) -> Item:
    return Item(name, f"file:///{name}", 3, 1.5, "0" * 64, metadata=metadata)


def test_items_come_back_as_written(tmp_path):
    items = [
        item("a", year=2020, price=1.5, ok=True, title="é", tags=["x", "y"]),
        item("b", year=2021, mixed=1),
        item("c", mixed="one", nested={"p": [1, None]}, huge=2**70),
        Item("d", "file:///s.tar#d", 3, 1.5, "0" * 64, 512),
    ]
    write_items(items, tmp_path / "items.parquet")
    table = read_items(tmp_path / "items.parquet")
    assert table.all() == items
    assert [table.item(row) for row in range(4)] == items


def test_clean_metadata_refuses_what_no_json_writer_carries():
    def lists(depth):
        value = 1
        for _ in range(depth):
            value = [value]
        return {"deep": value}

    assert clean_metadata(lists(31)) == lists(31)
    for depth in (32, 500, 5000):
        with pytest.raises(ValueError, match="nested more than 32 deep"):
            clean_metadata(lists(depth))


def test_items_keep_simple_metadata_as_typed_columns(tmp_path):
    write_items([item("a", year=2020, tags=["x"]), item("b")], tmp_path / "items.parquet")
    schema = pq.read_schema(tmp_path / "items.parquet")
    assert str(schema.field("metadata.year").type) == "int64"
    rows = pq.read_table(tmp_path / "items.parquet").to_pylist()
    assert json.loads(rows[0]["metadata.tags"]) == ["x"]


def test_items_metadata_named_like_our_columns_does_not_collide(tmp_path):
    items = [item("a", id="other", uri=7)]
    write_items(items, tmp_path / "items.parquet")
    assert read_items(tmp_path / "items.parquet").all() == items


def test_item_table_finds_every_id_and_no_other(tmp_path):
    names = sorted(["a/1", "a/10", "a/2", "é", "z", "日本", "😀", "A"])
    write_items([item(name) for name in names], tmp_path / "items.parquet")
    table = read_items(tmp_path / "items.parquet")
    assert [table.find(name) for name in names] == list(range(len(names)))
    assert [table.find(name) for name in ("", "a/", "a/11", "zz", "😁")] == [None] * 5


def test_clean_metadata_keeps_what_json_can_say():
    values = {"nan": float("nan"), "none": None, "day": datetime.date(2020, 1, 2), "s": "a\udc80"}
    cleaned = clean_metadata({**values, "list": [1, float("inf")], 3: True})
    assert cleaned == {"day": "2020-01-02", "s": "a?", "list": [1, None], "3": True}
    json.dumps(cleaned, allow_nan=False)


def test_read_items_refuses_other_files(tmp_path):
    (tmp_path / "items.parquet").write_bytes(b"PAR1 this is no parquet")
    with pytest.raises(GalleryError, match=r"items\.parquet is damaged"):
        read_items(tmp_path / "items.parquet")


def test_items_find_the_segments_of_a_video_and_not_of_one_with_a_longer_name(tmp_path):
    ids = ["a.mp4#t=0,2", "a.mp4#t=2,3.5", "a.mp4#t=1.mp4#t=0,2"]
    items = [Item(one, "file:///x", 1, 0.0, "", start_s=0.0, end_s=2.0) for one in sorted(ids)]
    write_items(items, tmp_path / "items.parquet")
    table = read_items(tmp_path / "items.parquet")
    assert [table.id(row) for row in table.find_entry("a.mp4")] == ids[:2]
    assert [table.id(row) for row in table.find_entry("a.mp4#t=1.mp4")] == ids[2:]
