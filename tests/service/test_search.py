"""Searching over HTTP: every query form, the options, and the same hits as without a server."""

from __future__ import annotations

import asyncio
import base64
import itertools

import httpx
import numpy as np
import pytest

from cots_model.encoder import Encoder
from cots_model.images import decode_image
from index_builder.search import search_gallery
from service.galleries import Registry
from tests.service.conftest import Running, error_of, picture

SEARCH = "/v1/galleries/pets/search"


def hits_of(answer: httpx.Response) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    return [(hit["id"], hit["score"]) for hit in answer.json()["hits"]]


def same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> bool:
    """Equal ids in equal order, scores to 1e-6."""
    return [i for i, _ in found] == [i for i, _ in expected] and np.allclose(
        [s for _, s in found], [s for _, s in expected], rtol=0, atol=1e-6
    )


@pytest.fixture
def offline(encoder: Encoder, registry: Registry):
    """The same search without a server, as `cots search` does it."""

    def search(vector_E: np.ndarray, **options: object) -> list[tuple[str, float]]:
        options = {"k": 10, **options}
        hits = search_gallery(registry.loaded["pets"], vector_E[None], **options)[0]
        return [(hit.id, hit.score) for hit in hits]

    return search


def test_text_query_gives_the_hits_of_an_offline_search(client, encoder, offline) -> None:
    for text in ("a dog runs in the snow", "red", "two cats on a beach " * 20, "\u2603 \u00fc"):
        expected = offline(encoder.encode_texts([text])[0])
        assert same(hits_of(client.post(SEARCH, json={"query": text})), expected)
        assert same(hits_of(client.post(SEARCH, json={"query": {"text": text}})), expected)


@pytest.mark.parametrize("prefix", ["", "data:image/jpeg;base64,", "DATA:;base64,"])
def test_image_query_gives_the_hits_of_an_offline_search(client, encoder, offline, prefix) -> None:
    data = picture(7)
    expected = offline(encoder.encode_images([decode_image(data)])[0])
    image = prefix + base64.b64encode(data).decode()
    assert same(hits_of(client.post(SEARCH, json={"query": {"image": image}})), expected)


def test_upload_gives_the_hits_of_the_same_image_in_json(client) -> None:
    data = picture(8)
    image = base64.b64encode(data).decode()
    options = {"k": 3, "offset": 1, "min_score": -1.0}
    as_json = client.post(SEARCH, json={"query": {"image": image}, **options})
    upload = client.post(f"{SEARCH}/upload", files={"file": ("a.jpg", data)}, data=options)
    assert len(hits_of(as_json)) == 3
    assert same(hits_of(upload), hits_of(as_json))


def test_upload_takes_include_as_a_list(client) -> None:
    data = {"k": "1", "include": "metadata,embedding"}
    answer = client.post(f"{SEARCH}/upload", files={"file": ("a", picture(1))}, data=data)
    assert {"metadata", "embedding"} <= set(answer.json()["hits"][0])


def test_upload_with_an_empty_include_gives_the_hits_alone(client) -> None:
    data = {"k": "1", "include": ""}
    answer = client.post(f"{SEARCH}/upload", files={"file": ("a", picture(1))}, data=data)
    assert not {"metadata", "embedding"} & set(answer.json()["hits"][0])
    often = {"include": [""] * 17}
    refused = client.post(f"{SEARCH}/upload", files={"file": ("a", picture(1))}, data=often)
    assert error_of(refused, 422)["param"] == "include"
    blank = client.post(f"{SEARCH}/upload", files={"file": ("a", picture(1))}, data={"k": ""})
    assert error_of(blank, 422)["param"] == "k"
    document = client.get("/openapi.json").json()
    form = document["paths"]["/v1/galleries/{g}/search/upload"]["post"]["requestBody"]
    schema = form["content"]["multipart/form-data"]["schema"]
    assert "" in schema["properties"]["include"]["items"]["enum"]


def test_item_query_finds_the_item_itself_first(client, pictures) -> None:
    for item_id in pictures:
        found = hits_of(client.post(SEARCH, json={"query": {"item_id": item_id}, "k": 1}))
        assert found[0][0] == item_id
        assert found[0][1] == pytest.approx(1, abs=1e-5)


def test_embedding_query_is_normalised(client, encoder, offline) -> None:
    vector = encoder.encode_texts(["a dog"])[0]
    for scale in (1.0, 1e-30, 1e30, 1e200):
        values = (vector.astype(np.float64) * scale).tolist()
        answer = client.post(SEARCH, json={"query": {"embedding": values}})
        assert same(hits_of(answer), offline(vector))


def test_weighted_query_is_the_normalised_weighted_sum(client, encoder, offline) -> None:
    dog, snow = encoder.encode_texts(["dog", "snow"])
    total = 2.0 * dog - 0.5 * snow
    parts = [{"text": "dog", "weight": 2}, {"text": "snow", "weight": -0.5}]
    answer = client.post(SEARCH, json={"query": parts})
    assert same(hits_of(answer), offline(total / np.linalg.norm(total)))


def test_weighted_query_that_cancels_out_is_refused(client) -> None:
    parts = [{"item_id": "cat.jpg"}, {"item_id": "cat.jpg", "weight": -1}]
    error = error_of(client.post(SEARCH, json={"query": parts}), 422)
    assert (error["code"], error["param"]) == ("query_cancels_out", "query")
    batch = client.post(SEARCH, json={"queries": ["a dog", parts]}).json()["results"]
    assert batch[1]["error"]["param"] == "queries.1"


def test_a_query_that_weighs_nothing_is_refused(client) -> None:
    nothing = {"text": "a dog", "weight": 0}
    for query, which in (
        (nothing, "the weight of query"),
        ([nothing] * 2, "every weight of query"),
    ):
        error = error_of(client.post(SEARCH, json={"query": query}), 422)
        assert (error["code"], error["param"]) == ("query_cancels_out", "query")
        assert error["message"].startswith(f"{which} is 0")


def test_what_the_model_does_not_read_of_a_text_is_said(client, encoder) -> None:
    most = encoder.text_preprocess.config.max_tokens
    long, short = " ".join(["dog"] * most + ["elephant"]), "a dog"
    body = client.post(SEARCH, json={"query": long}).json()
    [told] = body["warnings"]
    assert (told["code"], told["param"]) == ("text_cut", "query")
    assert "what comes after '…" in told["message"]
    assert "elephant" not in told["message"]
    whole = long[: encoder.read_texts([long]).cut_at_B[0]]
    assert client.post(SEARCH, json={"query": whole}).json()["hits"] == body["hits"]
    assert "warnings" not in client.post(SEARCH, json={"query": short}).json()
    queries = [short, {"text": short, "k": 3}]
    _, wrong = client.post(SEARCH, json={"queries": queries}).json()["results"]
    assert "put it beside queries" in wrong["error"]["message"]
    queries = [short, [{"text": short}, {"text": long}], long * 20, {"item_id": "nope"}]
    results = client.post(SEARCH, json={"queries": queries}).json()["results"]
    params = [[one["param"] for one in result.get("warnings", [])] for result in results]
    assert params == [[], ["queries.1.1"], ["queries.2"], []]


def test_batch_answers_in_order_and_a_bad_entry_fails_alone(client) -> None:
    image = base64.b64encode(picture(3)).decode()
    entries = ["red", "  ", {"image": "AAAA"}, {"item_id": "none"}, 7, {"image": image}, "blue"]
    results = client.post(SEARCH, json={"queries": entries, "k": 4}).json()["results"]
    codes = [result.get("error", {}).get("code") for result in results]
    broken = "image_unsupported_format"
    assert codes == [None, "text_empty", broken, "item_not_found", "query_form", None, None]
    assert results[2]["error"]["param"] == "queries.2.image"
    for number in (0, 5, 6):
        alone = client.post(SEARCH, json={"query": entries[number], "k": 4})
        found = [(hit["id"], hit["score"]) for hit in results[number]["hits"]]
        assert same(found, hits_of(alone))


def test_concurrent_texts_give_the_scores_of_each_alone(server: Running, encoder, offline) -> None:
    texts = [
        " ".join(["dog", "snow", "red", "beach"][: n % 4 + 1] * (n % 5 + 1)) for n in range(40)
    ]

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            return await asyncio.gather(*(client.post(SEARCH, json={"query": t}) for t in texts))

    for text, answer in zip(texts, asyncio.run(ask_all()), strict=True):
        scores = [score for _, score in hits_of(answer)]
        expected = [score for _, score in offline(encoder.encode_texts([text])[0])]
        assert scores == pytest.approx(expected, abs=1e-6)


def test_pages_join_to_the_whole(client, pictures) -> None:
    whole = hits_of(client.post(SEARCH, json={"query": "red", "k": 1000}))
    assert sorted(item_id for item_id, _ in whole) == sorted(pictures)
    pages = (
        hits_of(client.post(SEARCH, json={"query": "red", "k": 4, "offset": offset}))
        for offset in range(0, len(pictures) + 4, 4)
    )
    assert same(list(itertools.chain(*pages)), whole)


def test_min_score_keeps_exactly_the_hits_at_or_above(client) -> None:
    whole = hits_of(client.post(SEARCH, json={"query": "red", "k": 1000}))
    cut = whole[4][1]
    found = hits_of(client.post(SEARCH, json={"query": "red", "k": 1000, "min_score": cut}))
    assert found == [hit for hit in whole if hit[1] >= cut]


def test_score_is_the_dot_product_with_the_included_embedding(client, encoder) -> None:
    query = encoder.encode_texts(["red"])[0]
    body = {"query": "red", "include": ["embedding"]}
    for hit in client.post(SEARCH, json=body).json()["hits"]:
        assert "metadata" not in hit
        assert np.dot(query, hit["embedding"]) == pytest.approx(hit["score"], abs=1e-6)


def test_answer_has_the_fields_of_the_contract(client, registry) -> None:
    body = client.post(SEARCH, json={"query": "asked by nobody else", "k": 2}).json()
    gallery = registry.loaded["pets"]
    assert set(body) == {"gallery", "version", "model", "took_ms", "hits"}
    assert (body["gallery"], body["version"], body["model"]) == ("pets", gallery.version, "tiny")
    took = body["took_ms"]
    assert set(took) == {"queue", "encode", "search", "total"}
    assert took["encode"] > 0
    assert took["search"] > 0
    assert took["total"] >= took["queue"] + took["encode"] + took["search"] - 0.01
    assert set(body["hits"][0]) == {"id", "score", "uri", "thumbnail", "metadata"}


def test_words_that_were_asked_for_lately_cost_no_encoding(client) -> None:
    answers = [client.post(SEARCH, json={"query": "the same words again"}) for _ in range(2)]
    first, second = (answer.json() for answer in answers)
    assert first["hits"] == second["hits"]
    assert first["took_ms"]["encode"] > second["took_ms"]["encode"] == 0


def test_thumbnail_links_of_hits_work(client, pictures) -> None:
    hits = client.post(SEARCH, json={"query": "red", "k": 100}).json()["hits"]
    assert len(hits) == len(pictures)
    for hit in hits:
        assert client.get(hit["thumbnail"]).headers["content-type"] == "image/jpeg"


def test_an_answer_of_many_hits_is_written_beside_the_others(client) -> None:
    many = client.post(SEARCH, json={"queries": ["a dog"] * 200, "k": 10})
    [one] = client.post(SEARCH, json={"queries": ["a dog"], "k": 10}).json()["results"]
    ids = [hit["id"] for hit in one["hits"]]
    assert many.headers["content-type"] == "application/json"
    assert [[hit["id"] for hit in found["hits"]] for found in many.json()["results"]] == [ids] * 200
    told = client.post(SEARCH, json={"query": "a dog", "include": ["embedding"]}).json()["hits"]
    assert all(len(hit["embedding"]) == 32 for hit in told)
