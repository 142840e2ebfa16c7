"""Searching the real service: the hits it gives, every kind of query, many, and page by page."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cots_client import (
    Client,
    GalleryChangedError,
    InvalidRequestError,
    QueryError,
    SearchResult,
    TooLargeError,
    batches,
    embedding,
    image,
    image_url,
    item,
    text,
)
from tests.client.conftest import FOUND, answer
from tests.service.conftest import Running, picture


def told(server: Running, query: Any, *, gallery: str = "pets", **options: Any) -> list[dict]:
    """The hits as the service sends them."""
    path = f"/v1/galleries/{gallery}/search"
    answered = server.client.post(path, json={"query": query, **options})
    assert answered.status_code == 200, answered.text
    hits: list[dict] = answered.json()["hits"]
    return hits


def ids(result: SearchResult | QueryError) -> list[str]:
    assert isinstance(result, SearchResult), result
    return [hit.id for hit in result.hits]


def test_words_find_what_the_service_finds(cots, server, registry) -> None:
    found = cots.search("pets", "a dog runs in the snow", k=5)
    expected = told(server, "a dog runs in the snow", k=5)
    for hit, sent in zip(found.hits, expected, strict=True):
        assert (hit.id, hit.uri, hit.thumbnail) == (sent["id"], sent["uri"], sent["thumbnail"])
        assert hit.score == pytest.approx(sent["score"], abs=1e-6)
        assert (hit.metadata, hit.embedding, hit.moment, hit.frames) == ({}, None, None, ())
    assert (found.gallery, found.model) == ("pets", "tiny")
    assert found.version == registry.loaded["pets"].version
    assert found.took_ms.total >= found.took_ms.search > 0


def test_every_kind_of_query_finds_what_the_service_finds(cots, server, encoder, tmp_path) -> None:
    data = picture(7)
    coded = base64.b64encode(data).decode()
    path = tmp_path / "query.jpg"
    path.write_bytes(data)
    vector = encoder.encode_texts(["red"])[0]
    queries = [
        (text("red"), {"text": "red"}),
        (path, {"image": coded}),
        (data, {"image": coded}),
        (io.BytesIO(data), {"image": coded}),
        (image(data, weight=2), {"image": coded}),
        (image(data, weight=-1), [{"image": coded, "weight": -1}]),
        (item("dogs/100%?.jpg"), {"item_id": "dogs/100%?.jpg"}),
        (embedding(vector), {"embedding": vector.tolist()}),
        (
            ["red", image(path, weight=0.5), item("cat.jpg", weight=-0.5)],
            ["red", {"image": coded, "weight": 0.5}, {"item_id": "cat.jpg", "weight": -0.5}],
        ),
    ]
    for query, sent in queries:
        expected = told(server, sent)
        found = cots.search("pets", query)
        assert ids(found) == [hit["id"] for hit in expected]
        scores = pytest.approx([hit["score"] for hit in expected], abs=1e-5)
        assert [hit.score for hit in found.hits] == scores


def test_options_do_what_they_do_also_beside_an_upload(others) -> None:
    options = {"k": 3, "filter": {"year": {"gte": 2002}}, "include": ["metadata", "embedding"]}
    for query in ("a photo", picture(301), item("1.jpg")):
        found = others.search("photos", query, **options)
        assert len(found.hits) == 3
        for hit in found.hits:
            assert hit.metadata["year"] >= 2002
            assert np.linalg.norm(hit.embedding) == pytest.approx(1, abs=1e-5)
        cut = found.hits[1].score
        above = others.search("photos", query, min_score=cut, **{**options, "include": []})
        assert ids(above) == ids(found)[:2]
        assert above.hits[0].metadata == {}
        assert above.hits[0].embedding is None
        assert ids(others.search("photos", query, offset=1, **options))[:2] == ids(found)[1:]
        assert others.search("photos", query, deduplicate=True).hits


def test_videos_have_moments_and_texts_their_text(others) -> None:
    [hit] = others.search("films", "a walk", include=["frames"], rank_by="frame").hits
    assert len(hit.frames) == 16
    assert hit.moment is not None
    best = hit.frames[hit.moment.frame]
    assert (best.time_s, best.score) == (hit.moment.time_s, hit.moment.score)
    assert hit.score == hit.moment.score
    [first] = others.search("texts", picture(1), k=1).hits
    assert first.text
    assert first.thumbnail is None


def test_an_address_is_not_fetched_unless_the_server_does(cots) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        cots.search("pets", image_url("https://pictures.test/a.jpg"))
    assert caught.value.param == "query.image_url"


MANY = ["red", "  ", item("none"), "blue", picture(3), b"no picture", ["a dog", item("cat.jpg")]]
CODES = [None, "text_empty", "item_not_found", None, None, "image_unsupported_format", None]


@pytest.mark.parametrize(("batch_size", "num_requests"), [(256, 1), (7, 1), (3, 3), (1, 7)])
def test_many_queries_have_results_or_errors_in_their_places(
    cots, server, batch_size, num_requests
) -> None:
    before = count_searches(server)
    results = cots.search_many("pets", iter(MANY), k=4, batch_size=batch_size)
    assert count_searches(server) - before == num_requests
    assert [getattr(result, "code", None) for result in results] == CODES
    for number, (query, result) in enumerate(zip(MANY, results, strict=True)):
        if isinstance(result, QueryError):
            assert result.index == number
            assert result.param.startswith(f"queries.{number}")
        else:
            assert ids(result) == ids(cots.search("pets", query, k=4))
    assert "queries.1 is empty" in str(results[1])


def count_searches(server: Running) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    path = 'route="/v1/galleries/{g}/search"'
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith("cots_requests_total") and path in line
    )


def test_more_queries_than_the_server_takes_are_split(cots, encoder) -> None:
    vectors = encoder.encode_texts([f"{n} dogs" for n in range(batches.MOST + 50)])
    results = cots.search_many("pets", map(embedding, vectors), k=1)
    assert len(results) == batches.MOST + 50
    for number in (0, batches.MOST - 1, batches.MOST, batches.MOST + 49):
        assert ids(results[number]) == ids(cots.search("pets", embedding(vectors[number]), k=1))
    assert cots.search_many("pets", []) == []


def test_pictures_are_split_so_that_no_request_is_too_large(serve, monkeypatch) -> None:
    pictures = [picture(seed) for seed in range(8)]
    assert max(map(len, pictures)) < 3000
    with Client(serve(max_body_bytes=8000).url) as client:
        with pytest.raises(TooLargeError):
            client.search_many("pets", pictures)
        monkeypatch.setattr(batches, "MOST_BYTES", 7500)
        assert len([ids(result) for result in client.search_many("pets", pictures)]) == 8


def test_what_fails_a_whole_batch_is_raised(cots) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        cots.search_many("pets", ["a", "b"], k=100_000)
    assert caught.value.param == "k"


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_pictures_that_cannot_be_read_are_errors_in_their_places(
    cots, tmp_path, batch_size
) -> None:
    gone = [tmp_path / f"gone{n}.jpg" for n in range(3)]
    queries = [gone[0], "red", " ", gone[1], ["blue", gone[2]], picture(3), gone[0]]
    results = cots.search_many("pets", queries, k=4, batch_size=batch_size)
    codes = [getattr(result, "code", None) for result in results]
    unread = "picture_unreadable"
    assert codes == [unread, None, "text_empty", unread, unread, None, unread]
    for number in (0, 2, 3, 4, 6):
        assert (results[number].index, results[number].param.split(".")[:2]) == (
            number,
            ["queries", str(number)],
        )
    assert "gone1.jpg' cannot be read (No such file" in str(results[3])
    for number in (1, 5):
        assert ids(results[number]) == ids(cots.search("pets", queries[number], k=4))


def test_queries_of_which_none_can_be_read_are_not_sent(script, tmp_path) -> None:
    server = script(answer())
    found = server.ask("search_many", "photos", [tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert [(error.index, error.code) for error in found] == [
        (0, "picture_unreadable"),
        (1, "picture_unreadable"),
    ]
    assert server.requests == []


def test_what_fails_a_batch_is_numbered_as_given(script, tmp_path) -> None:
    def refused(request: httpx.Request) -> httpx.Response:
        message = "queries.1 and queries.10 have no 'queries.1'"
        told = {"message": message, "type": "t", "code": "c", "param": "queries.1.text"}
        return httpx.Response(422, json={"error": told})

    found = {**FOUND, "results": [{"hits": []}, {"hits": []}]}
    queries = [tmp_path / "gone.jpg", "a", "b", "c", "d"]
    with pytest.raises(InvalidRequestError) as caught:
        script(answer(200, found), refused).ask("search_many", "photos", queries, batch_size=2)
    assert caught.value.param == "queries.4.text"
    assert caught.value.message == "queries.4 and queries.10 have no 'queries.1'"


def test_what_is_passed_over_of_words_is_told(cots) -> None:
    long = "dog " * 300
    [told] = cots.search("pets", long).warnings
    assert (told.code, told.param) == ("text_cut", "query")
    assert cots.search("pets", "a dog").warnings == ()
    results = cots.search_many("pets", ["a dog", "a cat", long], batch_size=2)
    assert [[one.param for one in result.warnings] for result in results] == [[], [], ["queries.2"]]
    assert results[2].warnings[0].message.startswith("queries.2 is longer")


def test_an_answer_of_fewer_results_is_refused(script) -> None:
    from cots_client import AnswerError

    body = {**FOUND, "results": [{"hits": []}]}
    with pytest.raises(AnswerError, match="a list of 2"):
        script(answer(200, body)).ask("search_many", "photos", ["a", "b"])


@pytest.mark.parametrize("page_size", [1, 4, 21, 100])
def test_pages_join_to_the_whole(cots, pictures, page_size) -> None:
    whole = ids(cots.search("pets", "red", k=1000))
    assert sorted(whole) == sorted(pictures)
    assert [hit.id for hit in cots.iter_hits("pets", "red", page_size=page_size)] == whole


def test_a_limit_and_options_hold_over_pages(cots) -> None:
    whole = cots.search("pets", "red", k=1000).hits
    for limit in (0, 1, 3, 4, 7, 1000):
        found = list(cots.iter_hits("pets", "red", page_size=3, limit=limit))
        assert [hit.id for hit in found] == [hit.id for hit in whole[:limit]]
    cut = whole[4].score
    found = list(cots.iter_hits("pets", "red", page_size=2, min_score=cut))
    assert [hit.id for hit in found] == [hit.id for hit in whole if hit.score >= cut]


def test_pages_are_asked_for_as_hits_are_taken(cots, server) -> None:
    before = count_searches(server)
    hits = cots.iter_hits("pets", "red", page_size=2)
    assert count_searches(server) == before
    assert len(list(itertools.islice(hits, 3))) == 3
    assert count_searches(server) - before == 2


def test_a_picture_from_a_stream_is_asked_for_on_every_page(cots) -> None:
    whole = ids(cots.search("pets", picture(2), k=7))
    found = cots.iter_hits("pets", io.BytesIO(picture(2)), page_size=3, limit=7)
    assert [hit.id for hit in found] == whole


def test_what_hits_include_is_asked_for_on_every_page(cots) -> None:
    include = iter(["embedding"])
    hits = list(cots.iter_hits("pets", "red", page_size=2, limit=5, include=include))
    assert [hit.embedding is None for hit in hits] == [False] * 5


def test_the_end_of_what_a_server_pages_is_an_error(serve) -> None:
    with Client(serve(max_offset=5).url) as client:
        hits = client.iter_hits("pets", "red", page_size=4)
        assert len(list(itertools.islice(hits, 8))) == 8
        with pytest.raises(InvalidRequestError) as caught:
            next(hits)
    assert caught.value.param == "offset"


def test_a_new_version_between_pages_is_told(script) -> None:
    server = script(answer(200, FOUND), answer(200, {**FOUND, "version": "2"}))
    with pytest.raises(GalleryChangedError, match="from version 1 to 2 after 1 hits"):
        server.ask("iter_hits", "photos", "a dog", page_size=1)


def test_the_application_is_searched_without_a_socket(in_process, tmp_path: Path) -> None:
    data = picture(5)

    async def ask() -> None:
        async with in_process() as client:
            one = await client.search("pets", "red", k=5)
            together = await asyncio.gather(*(client.search("pets", t) for t in ("a", "b", data)))
            assert all(len(result.hits) == 10 for result in together)
            many = await client.search_many("pets", ["red", " ", data], k=5, batch_size=2)
            assert ids(many[0]) == ids(one)
            assert isinstance(many[1], QueryError)
            assert ids(many[2]) == ids(together[2])[:5]
            paged = [hit.id async for hit in client.iter_hits("pets", "red", limit=5, page_size=2)]
            assert paged == ids(one)
            saved = await client.download("pets", "cat.jpg", tmp_path / "cat.jpg")
            whole = await client.content("pets", "cat.jpg")
            assert saved.read_bytes() == whole.data
            assert await client.is_ready()

    asyncio.run(ask())
