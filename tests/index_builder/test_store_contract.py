"""What every store of a gallery must do alike: FAISS files, and a Milvus collection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cots_model.errors import InputError
from index_builder.filter import FilterError, parse_filter
from index_builder.gallery import Gallery, ItemNotFoundError
from index_builder.indexes.exact import exact_scores
from index_builder.items import Item
from index_builder.search import search_gallery
from index_builder.verify import verify_gallery
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors

COUNT = 120
STORES = ["faiss", "milvus"]
NASTY = [
    'a"b',
    "a'b",
    "a\\b",
    'x" or row >= 0 or id == "',
    "x' or '1' == '1",
    "tab\tand\nline",
    "{id}",
    "$meta",
    "%",
    " leading and trailing ",
    "ünï/☃/日本語.jpg",
    "🙂.png",
    "\u202eright to left",
    "x" * 3000,
]
METADATA = [
    {},
    {"caption": ""},
    {"tags": [], "nested": {"a": [1, 2.5, None, True], "q": "\"\\'"}},
    {"big": 2**80, "small": -(2**63), "real": 0.1, "whole": 1.0, "yes": True},
    {"ключ": "значение", 'quote"key': "\\", "": "empty key"},
    {"long": "é" * 100_000},
]


def _items() -> list[Item]:
    ids = sorted([*NASTY, *(f"plain/{n:03d}.jpg" for n in range(COUNT - len(NASTY)))])
    items = plain_items(ids)
    changed = [
        replace(item, metadata=METADATA[number % len(METADATA)])
        for number, item in enumerate(items)
    ]
    changed[3] = replace(changed[3], offset_bytes=512, text='a text\0 with NUL, "quotes"')
    changed[4] = replace(changed[4], start_s=0.1, end_s=12.75, duration_s=1e9)
    return changed


def _vectors() -> np.ndarray:
    """Rows 20 to 69 are one vector, so that ties reach over every margin."""
    vectors_NE = unit_vectors(COUNT)
    vectors_NE[20:70] = vectors_NE[20]
    return vectors_NE


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("stores")
    publish_gallery(folder / "faiss", _vectors(), _items())
    found = {"faiss": folder / "faiss"}
    with ExitStack() as stack:
        try:
            from index_builder.milvus.export import export_gallery
            from index_builder.milvus.options import ExportOptions
            from tests.index_builder.milvus.conftest import lite_file
        except pytest.skip.Exception:
            yield found
            return
        url = stack.enter_context(lite_file(folder / "lite.db"))
        options = ExportOptions(
            gallery=folder / "faiss", to=f"{url}/contract", target=folder / "milvus"
        )
        export_gallery(options)
        yield {**found, "milvus": folder / "milvus"}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, roots: dict[str, Path]) -> Gallery:
    if request.param not in roots:
        pytest.skip("pymilvus and milvus-lite are not installed")
    return Gallery.open(roots[request.param])


@pytest.fixture(scope="module")
def reference(roots: dict[str, Path]) -> Gallery:
    return Gallery.open(roots["faiss"])


def queries() -> np.ndarray:
    """Random ones, one of the ties, an opposite, a long one and the zero vector."""
    stored_NE = _vectors()
    extra = [stored_NE[20], -stored_NE[20], 1e3 * stored_NE[5], np.zeros(16, np.float32)]
    return np.concatenate([unit_vectors(6, seed=9), np.array(extra)]).astype(np.float32)


@pytest.mark.parametrize("k", [1, 10, 33, 60, COUNT - 1, COUNT, COUNT + 1, 50_000])
def test_search_finds_what_brute_force_finds(store, k):
    query_QE = queries()
    scores_QK, rows_QK = store.search(query_QE, k)
    assert scores_QK.dtype == np.float32
    assert rows_QK.dtype == np.int64
    products = query_QE[:, None].astype(np.float64) * _vectors()[None].astype(np.float64)
    scores_QN = products.sum(axis=2).astype(np.float32)
    for scores_K, rows_K, scores_N in zip(scores_QK, rows_QK, scores_QN, strict=True):
        order = np.lexsort((np.arange(COUNT), -scores_N))[:k]
        assert rows_K.tolist() == order.tolist()
        assert scores_K.tobytes() == scores_N[order].tobytes()


def test_search_of_one_query_is_its_row_in_a_batch(store):
    query_QE = queries()
    scores_QK, rows_QK = store.search(query_QE, 25)
    for at, query_E in enumerate(query_QE):
        scores_1K, rows_1K = store.search(query_E[None], 25)
        assert scores_1K.tobytes() == scores_QK[at].tobytes()
        assert rows_1K.tolist() == [rows_QK[at].tolist()]


def test_hits_are_the_same(store, reference):
    query_QE = queries()
    assert search_gallery(store, query_QE, k=40) == search_gallery(reference, query_QE, k=40)
    paged = search_gallery(store, query_QE, k=7, offset=5, min_score=0.1)
    assert paged == search_gallery(reference, query_QE, k=7, offset=5, min_score=0.1)
    assert search_gallery(store, query_QE, k=5, offset=COUNT) == [[]] * len(query_QE)


@pytest.mark.parametrize(
    ("query", "k"),
    [
        (np.zeros((1, 15), np.float32), 1),
        (np.zeros(16, np.float32), 1),
        (np.full((1, 16), np.nan, np.float32), 1),
        (np.full((1, 16), np.inf, np.float32), 1),
        (np.zeros((1, 16), np.float32), 0),
        (np.zeros((1, 16), np.float32), -3),
    ],
)
def test_search_refuses_what_has_no_meaning(store, query, k):
    with pytest.raises(InputError, match="accepted"):
        store.search(query, k)


FILTERS = [
    {},
    {"caption": {"eq": ""}},
    {"yes": {"eq": True}, "real": {"gte": 0.1}},
    {"small": {"lte": -(2**63)}},
    {"big": {"gt": 2**70}},
    {"tags": {"exists": True}},
    {"nested.q": {"contains": "'"}},
    {"nested.a": {"contains": 2.5}},
    {"ключ": {"in": ["значение", "x' or '1' == '1"]}},
    {'quote"key': {"ne": "\\"}},
    {"long": {"contains": "éé"}},
    {"or": [{"whole": {"lt": 2}}, {"not": {"yes": {"exists": True}}}]},
]


@pytest.mark.parametrize("raw", FILTERS, ids=str)
def test_filters_leave_the_same_hits(store, reference, raw):
    query_QE = queries()
    for options in ({"k": 7, "offset": 3}, {"k": COUNT}, {"k": 9, "distinct": 0.97}):
        where = parse_filter(raw)
        found = search_gallery(store, query_QE, where=where, **options)
        assert found == search_gallery(reference, query_QE, where=where, **options)
        if options["k"] == COUNT:
            assert {len(hits) for hits in found} == {len(store.filters.rows(where))}


@pytest.mark.parametrize("few", [0, 10_000])
def test_a_search_among_rows_is_exact_whether_they_are_read_or_ranked(store, few, monkeypatch):
    monkeypatch.setattr("index_builder.milvus.index._FEW_ROWS", few)
    query_QE = queries()
    for rows_M in (np.arange(0, COUNT, 3), np.arange(15, COUNT), np.array([42])):
        scores_QK, rows_QK = store.search(query_QE, 30, rows_M=rows_M)
        for query_E, scores_K, rows_K in zip(query_QE, scores_QK, rows_QK, strict=True):
            expected_K = exact_scores(query_E, _vectors()[rows_M])
            order = np.lexsort((rows_M, -expected_K))[:30]
            assert rows_K.tolist() == rows_M[order].tolist()
            assert scores_K.tobytes() == expected_K[order].tobytes()


def test_filters_that_do_not_fit_are_refused_alike(store):
    for raw, said in (
        ({"nested.x": {"eq": 1}}, "filter.nested.x.eq names a column or field that no item has"),
        ({"yes": {"eq": 1}}, "filter.yes.eq is given a number, and the column holds booleans"),
    ):
        with pytest.raises(FilterError) as caught:
            store.filters.rows(parse_filter(raw))
        assert str(caught.value).startswith(said)


def test_items_come_back_as_they_were_indexed(store):
    expected = _items()
    assert len(store) == COUNT
    assert store.ids() == [item.id for item in expected]
    assert [store.item(row) for row in range(COUNT)] == expected
    rows = [7, 3, 3, COUNT - 1, 0]
    assert store.items(rows) == [expected[row] for row in rows]
    assert store.items([]) == []
    assert store.items(range(COUNT)) == expected
    for row, item in enumerate(expected):
        found = store.item(row).metadata
        assert {key: type(value) for key, value in found.items()} == {
            key: type(value) for key, value in item.metadata.items()
        }


@pytest.mark.parametrize("row", [-1, COUNT])
def test_rows_outside_are_refused(store, row):
    for read in (store.item, store.vector, lambda row: store.items([0, row])):
        with pytest.raises(IndexError):
            read(row)


def test_items_are_found_by_their_id_and_by_nothing_else(store):
    for row, item_id in enumerate(store.ids()):
        assert store.row(item_id) == row
    strangers = ["", "nobody", 'nobody" or row >= 0 or id == "', "a", "plain/000.jpg ", "\ud800"]
    strangers += [NASTY[0] + '"', NASTY[2] + "\\", "y" * 70_000]
    for item_id in strangers:
        with pytest.raises(ItemNotFoundError):
            store.row(item_id)


def test_vectors_come_back_bit_for_bit(store):
    expected = _vectors()
    assert store.vectors.shape == expected.shape
    for size in (1, 7, COUNT, 1000):
        blocks = list(store.vectors.blocks(size))
        assert all(block.dtype == np.float32 for block in blocks)
        assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
        assert np.concatenate(blocks).tobytes() == expected.tobytes()
    rows = np.array([9, 0, 9, COUNT - 1, 4])
    assert store.vectors.rows(rows).tobytes() == expected[rows].tobytes()
    assert store.vectors.rows(np.array([], np.int64)).shape == (0, 16)
    vector_E = store.vector(3)
    vector_E[:] = 0
    assert store.vector(3).tobytes() == expected[3].tobytes()


def test_verify_finds_nothing_wrong(store):
    problems = verify_gallery(store.root)
    assert len(problems) >= 3
    assert not any(problems.values())
