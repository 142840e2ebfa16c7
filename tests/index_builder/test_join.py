"""The join: what many parts give is, byte for byte, what one would have given."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from index_builder import items as items_module
from index_builder.item_join import join_items
from index_builder.items import Item, read_items, write_items
from index_builder.join import Piece, join
from index_builder.manifest import VectorsInfo
from index_builder.parts import read_skips
from index_builder.sources.entry import Skip


def item(name: str, **metadata: object) -> Item:
    return Item(name, f"file:///{name}", 3, 1.5, "0" * 64, metadata=metadata)


VALUES = {
    "int": [1, -5, 2**40],
    "huge": [2**70, 3],
    "float": [0.1, 1e300, -0.0, 1e-7],
    "bool": [True, False],
    "str": ["a", "é😀", 'q"\\', "\u2028"],
    "list": [[1, "x"], []],
    "mixed": [1, 1.5, True, "s", {"k": [None]}],
}


@pytest.mark.parametrize("seed", range(12))
def test_join_items_equals_writing_all_at_once(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(items_module, "ROW_GROUP", 16)
    rng = random.Random(seed)
    parts = []
    for part in range(5):  # in each part a key may be of another type, or not there at all
        kinds = {key: rng.choice([*VALUES, None]) for key in ("a", "b", "c", "d")}
        parts.append(
            [
                item(
                    f"{part}-{number}",
                    **{
                        key: rng.choice(VALUES[kind])
                        for key, kind in kinds.items()
                        if kind and rng.random() < 0.7
                    },
                )
                for number in range(rng.randint(0, 30))
            ]
        )
    paths = [tmp_path / f"{number}.parquet" for number in range(5)]
    for path, part in zip(paths, parts, strict=True):
        write_items(part, path)
    everything = [one for part in parts for one in part]
    order = list(range(len(everything)))
    rng.shuffle(order)
    chosen = order[: rng.randint(1, len(order))] if seed % 2 else order
    join_items(paths, np.array(chosen, np.int64), tmp_path / "joined.parquet")
    write_items([everything[row] for row in chosen], tmp_path / "once.parquet")
    joined, once = tmp_path / "joined.parquet", tmp_path / "once.parquet"
    assert read_items(joined).all() == [everything[row] for row in chosen]
    assert joined.read_bytes() == once.read_bytes()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1], ["x"], "string"),
        ([1], [2], "int64"),
        ([1], [2**70], "string"),
        ([1], [1.5], "string"),
        ([[1]], [[2]], "string"),
        ([True], [None], "bool"),
    ],
)
def test_join_items_finds_the_common_type(tmp_path, first, second, expected):
    import pyarrow.parquet as pq

    paths = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    for path, values in zip(paths, (first, second), strict=True):
        write_items([item(path.stem, key=value) for value in values], path)
    join_items(paths, np.arange(2), tmp_path / "out.parquet")
    assert str(pq.read_schema(tmp_path / "out.parquet").field("metadata.key").type) == expected


def make_piece(
    folder: Path, names: list[str], places: list[int], skips: list[tuple[int, str]]
) -> Piece:
    folder.mkdir()
    write_items([item(name, of=folder.name) for name in names], folder / "items.parquet")
    rng = np.random.default_rng(len(names))
    z_NE = rng.standard_normal((len(names), 8)).astype(np.float32)
    z_NE /= np.linalg.norm(z_NE, axis=1, keepdims=True)
    np.save(folder / "vectors.npy", z_NE)
    listed = [(place, Skip(name, f"file:///{name}", "empty", "x")) for place, name in skips]
    return Piece(folder, VectorsInfo(), np.array(places, np.int64), lambda: iter(listed))


def test_join_gives_an_id_to_the_first_in_the_source_and_lists_skips_in_its_order(tmp_path):
    one = make_piece(tmp_path / "1", ["b", "é", "a"], [0, 2, 5], [(1, "s1"), (4, "s4")])
    two = make_piece(tmp_path / "2", ["a", "z", "b"], [3, 6, 7], [(8, "s8")])
    (tmp_path / "out").mkdir()
    joined = join([one, two], tmp_path / "out", dim=8, vectors="float32", interleaved=True)
    table = read_items(tmp_path / "out/items.parquet")
    assert [(i.id, i.metadata["of"]) for i in table.all()] == [
        ("a", "2"),
        ("b", "1"),
        ("z", "2"),
        ("é", "1"),
    ]
    skips = list(read_skips(tmp_path / "out/skipped.jsonl"))
    assert [skip.id for skip in skips] == ["s1", "s4", "a", "b", "s8"]
    assert joined.skipped == {"duplicate_id": 2, "empty": 3}
    assert (joined.count, joined.duplicates) == (4, 2)
    stored = {n: np.load(tmp_path / n / "vectors.npy") for n in ("1", "2", "out")}
    expected = [stored["2"][0], stored["1"][0], stored["2"][1], stored["1"][1]]
    assert np.array_equal(stored["out"], expected)


def test_join_is_the_same_however_it_is_cut_into_blocks(tmp_path, monkeypatch):
    names = [f"{number * 7919 % 1000:03d}" for number in range(300)]
    pieces = [
        make_piece(tmp_path / f"p{at}", names[at : at + 100], list(range(at, at + 100)), [])
        for at in (0, 100, 200)
    ]
    for size in (16_384, 37):
        monkeypatch.setattr("index_builder.join._BLOCK", size)
        (tmp_path / f"out{size}").mkdir()
        join(pieces, tmp_path / f"out{size}", dim=8, vectors="float16")
    first, second = tmp_path / "out16384", tmp_path / "out37"
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    assert json.loads((first / "skipped.jsonl").read_text() or "null") is None


def test_join_items_of_more_text_than_one_array_holds(tmp_path, monkeypatch):
    items = [Item(f"{n:02d}", f"file:///{n}", n, 0.0, "", text="x" * n * 50) for n in range(40)]
    write_items(items, tmp_path / "one.parquet")
    monkeypatch.setattr("index_builder.item_join._MOST_BYTES", 1000)
    join_items([tmp_path / "one.parquet"], np.arange(40)[::-1], tmp_path / "out.parquet")
    assert read_items(tmp_path / "out.parquet").all() == items[::-1]
