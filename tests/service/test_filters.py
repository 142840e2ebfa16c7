"""Filters, distinct hits and deadlines of long searches over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cots_cli.search import command
from cots_model.encoder import Encoder
from index_builder import filter_columns
from index_builder.filter import parse_filter
from index_builder.gallery import Gallery, read_manifest
from index_builder.indexes import among
from index_builder.indexes.open import open_index
from index_builder.items import read_items
from index_builder.manifest import INDEX_FILE, ITEMS_FILE, VECTORS_FILE
from index_builder.search import search_gallery
from index_builder.vectors import Rows, StoredVectors, Vectors
from service.galleries import Registry
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors
from tests.service.conftest import error_of, picture
from tests.service.versions import publish_copy

SEARCH = "/v1/galleries/photos/search"
COUNT = 200
WORDS = "a dog in snow"


@pytest.fixture(scope="module")
def photos(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 items of four years and two categories; every tenth is five times there."""
    vectors_NE = unit_vectors(COUNT, encoder.dim, seed=1)
    items = []
    for number, item in enumerate(plain_items([f"{n:03d}.jpg" for n in range(COUNT)])):
        metadata = {"year": 2018 + number % 4, "category": ["beach", "lake"][number % 2]}
        if number % 3:
            metadata["tags"] = ["red", f"n{number % 5}"]
        items.append(replace(item, metadata=metadata))
        if number % 10 < 5:
            vectors_NE[number] = vectors_NE[number - number % 10]
    root = tmp_path_factory.mktemp("filtered") / "photos"
    return publish_gallery(root, vectors_NE, items, fingerprint=encoder.fingerprint)


@pytest.fixture(scope="module")
def found(photos: Path, encoder: Encoder) -> Registry:
    return Registry.open(photos.parent, expected_fingerprint=encoder.fingerprint)


@pytest.fixture(scope="module")
def client(serve, found: Registry) -> httpx.Client:
    return serve(found=found).client


@pytest.fixture(scope="module")
def offline(encoder: Encoder, found: Registry) -> Callable[..., list[tuple[str, float]]]:
    def search(**options: Any) -> list[tuple[str, float]]:
        query_1E = encoder.encode_texts([WORDS])
        [hits] = search_gallery(found.loaded["photos"], query_1E, **options)
        return [(hit.id, hit.score) for hit in hits]

    return search


def hits_of(answer: httpx.Response) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    return [(hit["id"], hit["score"]) for hit in answer.json()["hits"]]


def same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> bool:
    """Equal ids in equal order, scores to 1e-6: texts encoded together may move the last digits."""
    return [i for i, _ in found] == [i for i, _ in expected] and np.allclose(
        [s for _, s in found], [s for _, s in expected], rtol=0, atol=1e-6
    )


FILTERS: list[dict[str, Any]] = [
    {"category": {"in": ["beach"]}, "year": {"gte": 2020}},
    {"or": [{"tags": {"contains": "n3"}}, {"not": {"tags": {"exists": True}}}]},
    {"category": {"contains": "ak"}},
    {"year": {"gt": 3000}},
    {},
]


@pytest.mark.parametrize("raw", FILTERS, ids=json.dumps)
def test_a_filter_gives_the_hits_of_an_offline_search(client, offline, raw):
    body = {"query": WORDS, "filter": raw, "k": 30, "offset": 2}
    expected = offline(where=parse_filter(raw), k=30, offset=2)
    assert same(hits_of(client.post(SEARCH, json=body)), expected)


def test_a_filter_leaves_what_it_says_and_all_of_it(client):
    raw = {"category": {"eq": "lake"}, "year": {"gte": 2020}, "tags": {"contains": "red"}}
    hits = client.post(SEARCH, json={"query": WORDS, "filter": raw, "k": 1000}).json()["hits"]
    numbers = [n for n in range(COUNT) if n % 2 and n % 4 >= 2 and n % 3]
    assert sorted(hit["id"] for hit in hits) == [f"{n:03d}.jpg" for n in numbers]
    for hit in hits:
        assert hit["metadata"]["category"] == "lake"
        assert hit["metadata"]["year"] >= 2020
        assert "red" in hit["metadata"]["tags"]


def test_distinct_hits_page_without_overlap(client, offline):
    whole = hits_of(client.post(SEARCH, json={"query": WORDS, "deduplicate": True, "k": 1000}))
    assert same(whole, offline(distinct=0.97, k=1000))
    assert len(whole) == COUNT * 6 // 10
    pages = []
    for offset in range(0, len(whole) + 7, 7):
        body = {"query": WORDS, "deduplicate": True, "k": 7, "offset": offset}
        pages += hits_of(client.post(SEARCH, json=body))
    assert same(pages, whole)


def test_the_similarity_of_duplicates_is_a_setting(serve, found, offline):
    client = serve(found=found, duplicate_similarity=0.5).client
    body = {"query": WORDS, "deduplicate": True, "k": 1000}
    assert same(hits_of(client.post(SEARCH, json=body)), offline(distinct=0.5, k=1000))


def test_a_batch_takes_filters_and_distinct_hits(client):
    options = {"filter": FILTERS[0], "deduplicate": True, "min_score": -0.1, "k": 9}
    entries = [WORDS, "  ", "red"]
    results = client.post(SEARCH, json={"queries": entries, **options}).json()["results"]
    assert results[1]["error"]["code"] == "text_empty"
    for entry, result in ((WORDS, results[0]), ("red", results[2])):
        alone = client.post(SEARCH, json={"query": entry, **options}).json()["hits"]
        assert [hit["id"] for hit in result["hits"]] == [hit["id"] for hit in alone]


def test_an_upload_takes_a_filter_as_json(client):
    data = {"filter": json.dumps(FILTERS[1]), "deduplicate": "true", "k": "50"}
    hits = client.post(f"{SEARCH}/upload", files={"file": picture(1)}, data=data).json()["hits"]
    assert len(hits) > 10
    assert all("tags" not in hit["metadata"] or "n3" in hit["metadata"]["tags"] for hit in hits)


@pytest.mark.parametrize(
    ("raw", "param", "said"),
    [
        ({"year": {"gte": "2020"}}, "filter.year.gte", "the column holds numbers"),
        ({"yeer": {"gte": 2020}}, "filter.yeer.gte", "the columns are 'category', 'tags', 'year'"),
        ({"year": {"above": 2020}}, "filter.year.above", "accepted are eq, ne, in"),
        ({"or": [{"year": {"in": [1, None]}}]}, "filter.or.0.year.in.1", "is null"),
        ({"year": 2020}, "filter.year", "is a number"),
    ],
)
def test_a_bad_filter_is_422_and_names_the_place(client, raw, param, said):
    body = json.dumps({"query": WORDS, "filter": raw})
    answer = client.post(SEARCH, content=body, headers={"content-type": "application/json"})
    error = error_of(answer, 422)
    assert (error["code"], error["param"]) == ("invalid_filter", param)
    assert said in error["message"]
    data = {"filter": json.dumps(raw)}
    upload = client.post(f"{SEARCH}/upload", files={"file": picture(1)}, data=data)
    assert error_of(upload, 422)["param"] == param


def test_the_command_gives_the_hits_of_http(client, photos, checkpoint):
    raw = {"year": {"gte": 2020}}
    body = {"query": WORDS, "filter": raw, "deduplicate": True, "k": 7, "offset": 1}
    arguments = ["--gallery", str(photos), "--checkpoint", str(checkpoint), WORDS, "--json"]
    arguments += ["-k", "7", "--offset", "1", "--filter", json.dumps(raw), "--deduplicate"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    answer = client.post(SEARCH, json=body)
    hits = json.loads(result.stdout)["hits"]
    assert same([(hit["id"], hit["score"]) for hit in hits], hits_of(answer))
    for hit, expected in zip(hits, answer.json()["hits"], strict=True):
        assert {**hit, "score": 0} == {**expected, "score": 0}


class SlowVectors(StoredVectors):
    """On a disk that stands still while the gate is closed."""

    def __init__(self, stored_NE: np.ndarray) -> None:
        super().__init__(stored_NE)
        self.gate = threading.Event()
        self.read: list[int] = []

    def rows(self, rows_n: Rows) -> Vectors:
        self.read.append(len(rows_n))
        assert self.gate.wait(30)
        return super().rows(rows_n)


def test_a_search_past_its_deadline_gives_its_thread_free(photos, serve, monkeypatch):
    monkeypatch.setattr(among, "BLOCK_ROWS", 8)
    folder, manifest = read_manifest(photos)
    vectors = SlowVectors(np.load(folder / VECTORS_FILE))
    index = open_index(folder / INDEX_FILE, manifest.index, vectors, device="cpu")
    gallery = Gallery(photos, manifest, vectors, read_items(folder / ITEMS_FILE), index)
    vectors.gate.set()  # for the self-test
    monkeypatch.setattr(Gallery, "open", lambda *_, **__: gallery)
    registry = Registry.open(photos.parent, expected_fingerprint=manifest.model_fingerprint)
    vectors.gate.clear()
    vectors.read.clear()
    client = serve(found=registry, deadline_s=0.5, search_threads=1, probe_interval_s=60.0).client
    body = {"query": WORDS, "filter": {"year": {"eq": 2019}}, "k": 3}
    assert error_of(client.post(SEARCH, json=body), 504)["code"] == "deadline_exceeded"
    vectors.gate.set()
    assert len(hits_of(client.post(SEARCH, json={"query": WORDS, "k": 3}))) == 3
    assert vectors.read.count(8) == 1  # of the 6 that the filter leaves


def test_columns_of_json_are_decoded_before_a_version_is_served(
    serve, photos, encoder, tmp_path, monkeypatch
):
    """At the start, and before the new version is taken: no request does it, and none waits."""
    root = tmp_path / "root"
    old = publish_copy(photos, root / "photos")
    registry = Registry.open(root, expected_fingerprint=encoder.fingerprint)
    client = serve(found=registry, reload_interval_s=0).client
    begun, gate = threading.Event(), threading.Event()
    decode = filter_columns.decode_column

    def held(*given):
        begun.set()
        assert gate.wait(30)
        return decode(*given)

    def ask(element: str) -> tuple[str, int]:
        body = {"query": WORDS, "filter": {"tags": {"contains": element}}, "k": 1000}
        answer = client.post(SEARCH, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["version"], len(answer.json()["hits"])

    monkeypatch.setattr(filter_columns, "decode_column", held)
    expected = sum(number % 3 > 0 for number in range(COUNT))
    new = publish_copy(photos, root / "photos")
    with ThreadPoolExecutor(1) as pool:
        reloading = pool.submit(client.post, "/v1/galleries/photos/reload")
        assert begun.wait(10)
        assert ask("red") == (old, expected)
        gate.set()
        assert reloading.result().json()["version"] == new
    monkeypatch.setattr(filter_columns, "decode_column", None)
    assert ask("red") == (new, expected)


def test_version_whose_metadata_are_no_json_is_refused(serve, photos, encoder, tmp_path):
    root = tmp_path / "root"
    old = publish_copy(photos, root / "photos")
    registry = Registry.open(root, expected_fingerprint=encoder.fingerprint)
    client = serve(found=registry, reload_interval_s=0).client

    def spoil(folder: Path) -> None:
        table = pq.read_table(folder / ITEMS_FILE)
        at = table.column_names.index("metadata.tags")
        texts = table.column(at).to_pylist()
        texts[1] = "[1,"  # in a row that no self-test looks at
        column = pa.array(texts, pa.string())
        pq.write_table(table.set_column(at, table.schema.field(at), column), folder / ITEMS_FILE)

    publish_copy(photos, root / "photos", signed=spoil)
    error_of(client.post("/v1/galleries/photos/reload"), 409)
    body = client.get("/v1/galleries/photos").json()
    assert (body["version"], body["refused"]["reason"]) == (old, "damaged")
    assert "'tags' holds what is no JSON in row 1" in registry.statuses()[0].refusal.message
