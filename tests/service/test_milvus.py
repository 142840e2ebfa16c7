"""A gallery in Milvus behind the service: it answers as from files, and 503 without Milvus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from index_builder.milvus.client import MilvusClient
from index_builder.milvus.export import export_gallery
from index_builder.milvus.options import ExportOptions
from service.galleries import Registry
from tests.index_builder.milvus.conftest import lite_file, start_server
from tests.service.conftest import error_of

__all__ = ["start_server"]  # a fixture


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with lite_file(tmp_path_factory.mktemp("milvus") / "lite.db") as url:
        yield url


@pytest.fixture(scope="module")
def milvus(lite, root, encoder, serve, tmp_path_factory: pytest.TempPathFactory) -> httpx.Client:
    """A client of a service whose galleries are the shared ones, exported."""
    folder: Path = tmp_path_factory.mktemp("exported")
    for name in ("pets", "shards"):
        export_gallery(
            ExportOptions(gallery=root / name, to=f"{lite}/{name}", target=folder / name)
        )
    registry = Registry.open(folder, expected_fingerprint=encoder.fingerprint)
    return serve(found=registry).client


def without_times(body: dict) -> dict:
    return {key: value for key, value in body.items() if key not in ("took_ms", "version")}


@pytest.mark.parametrize("gallery", ["pets", "shards"])
@pytest.mark.parametrize(
    "body",
    [
        {"query": "a dog in snow", "k": 5},
        {"query": "a dog in snow", "k": 100, "include": ["metadata", "embedding"]},
        {"queries": ["a cat", {"text": "a dog"}], "k": 3, "offset": 1},
        {"query": "a cat", "filter": {}, "deduplicate": True, "k": 20},
    ],
)
def test_search_answers_as_from_files(milvus, client, gallery, body):
    found = milvus.post(f"/v1/galleries/{gallery}/search", json=body)
    expected = client.post(f"/v1/galleries/{gallery}/search", json=body)
    assert found.status_code == 200, found.text
    assert_same(without_times(found.json()), without_times(expected.json()))


def assert_same(found: object, expected: object) -> None:
    """Equal but for the last digits of numbers: the words may have been encoded beside others."""
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-6)
    else:
        assert found == expected


def test_embeddings_of_a_page_are_read_at_once(milvus, monkeypatch):
    asked = []
    real = MilvusClient.query

    def counting(self, where, *args, **options):
        asked.append(where)
        return real(self, where, *args, **options)

    monkeypatch.setattr(MilvusClient, "query", counting)
    body = {"query": "a dog", "k": 20, "include": ["embedding"]}
    hits = milvus.post("/v1/galleries/pets/search", json=body).json()["hits"]
    assert all(len(hit["embedding"]) == len(hits[0]["embedding"]) for hit in hits)
    assert len(hits) == 20
    assert len(asked) == 2  # the items, and the vectors


def test_search_by_item_answers_as_from_files(milvus, client):
    body = {"query": {"item_id": "dogs/ünï ☃.jpg"}, "k": 4}
    found = milvus.post("/v1/galleries/pets/search", json=body)
    expected = client.post("/v1/galleries/pets/search", json=body)
    assert found.json()["hits"][0]["id"] == "dogs/ünï ☃.jpg"
    assert found.json()["hits"] == expected.json()["hits"]


@pytest.mark.parametrize("view", ["", "/thumbnail?size=32", "/content"])
@pytest.mark.parametrize(
    "path",
    ["pets/items/dogs/%C3%BCn%C3%AF%20%E2%98%83.jpg", "pets/items/wide.png", "shards/items/x"],
)
def test_items_answer_as_from_files(milvus, client, path, view):
    found = milvus.get(f"/v1/galleries/{path}{view}")
    expected = client.get(f"/v1/galleries/{path}{view}")
    assert found.status_code == expected.status_code == 200
    assert found.content == expected.content
    assert found.headers["content-type"] == expected.headers["content-type"]


def test_content_takes_ranges(milvus, pictures):
    url = "/v1/galleries/pets/items/wide.png/content"
    found = milvus.get(url, headers={"range": "bytes=10-19"})
    assert found.status_code == 206
    assert found.content == pictures["wide.png"][10:20]


def test_unknown_items_are_404(milvus):
    for item_id in ("nobody", "%22%20or%20row%20%3E%3D%200%20or%20id%20%3D%3D%20%22"):
        error_of(milvus.get(f"/v1/galleries/pets/items/{item_id}"), 404)


def test_gallery_tells_its_index_but_not_where_milvus_is(milvus, lite):
    answer = milvus.get("/v1/galleries/pets")
    index = answer.json()["index"]
    assert index["kind"] == "milvus"
    assert index["parameters"]["index_type"] == "FLAT"
    assert lite not in answer.text
    assert lite.removeprefix("milvus://") not in answer.text


def test_without_milvus_the_gallery_is_503_and_the_service_lives(
    root, encoder, serve, start_server, tmp_path
):
    server = start_server()
    target = tmp_path / "root" / "pets"
    target.parent.mkdir()
    options = ExportOptions(gallery=root / "pets", to=f"{server.url}/pets", target=target)
    export_gallery(options)
    registry = Registry.open(target.parent, expected_fingerprint=encoder.fingerprint)
    client = serve(found=registry).client
    body = {"query": "a dog", "k": 3}
    assert client.post("/v1/galleries/pets/search", json=body).status_code == 200
    server.stop()
    for _ in range(2):
        answer = client.post("/v1/galleries/pets/search", json=body)
        assert error_of(answer, 503)["code"] == "gallery_unavailable"
        assert str(server.port) not in answer.text
    error_of(client.get("/v1/galleries/pets/items/wide.png"), 503)
    assert client.get("/livez").status_code == 200
