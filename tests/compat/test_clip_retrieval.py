"""clip-retrieval's own client, as published, and what its web front sends."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from service.compat import knn
from tests.compat.conftest import KEY, KEY_SHA256, TEXTS
from tests.service.conftest import GatedEncoder, Running, error_of, picture, wait_until

FRONT = {
    "text": "a dog",
    "image": None,
    "image_url": None,
    "embedding_input": None,
    "modality": "image",
    "num_images": 4,
    "indice_name": "photos",
    "num_result_ids": 3000,
    "use_mclip": False,
    "deduplicate": False,
    "use_safety_model": True,
    "use_violence_detector": True,
    "aesthetic_score": "",
    "aesthetic_weight": "0.5",
}


@pytest.fixture(scope="module")
def server(serve, mixed) -> Running:
    return serve(found=mixed)


@pytest.fixture(scope="module")
def connect(clip_client, server):
    def connect(indice_name="photos", *, url=f"{server.url}/knn-service", **options):
        options = {"deduplicate": False, "num_images": 6, **options}
        return clip_client.ClipClient(url=url, indice_name=indice_name, **options)

    return connect


def post(server, path, body) -> object:
    """As a browser does: a body without a Content-Type of JSON."""
    return server.client.post(path, content=json.dumps(body).encode())


def ask(server, path, body):
    answer = post(server, path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def native(server, query, gallery="photos", **options) -> list[dict]:
    path = f"/v1/galleries/{gallery}/search"
    return server.client.post(path, json={"query": query, **options}).json()["hits"]


def shown(image: str) -> Image.Image:
    img = Image.open(io.BytesIO(base64.b64decode(image)))
    assert img.format == "JPEG"
    return img


def test_text_finds_what_the_native_search_finds(connect, server):
    hits = connect().query(text="two dogs in snow")
    expected = native(server, "two dogs in snow")
    assert [hit["item_id"] for hit in hits] == [hit["id"] for hit in expected]
    for hit, wanted in zip(hits, expected, strict=True):
        assert hit["similarity"] == pytest.approx(wanted["score"], abs=1e-6)
        assert hit["caption"] == wanted["metadata"]["caption"]
        assert hit["year"] == wanted["metadata"]["year"]


def test_ids_are_rows_whatever_the_metadata_says(connect, mixed):
    for hit in connect().query(text="a dog"):
        assert isinstance(hit["id"], int)
        assert mixed.loaded["photos"].item(hit["id"]).id == hit["item_id"]


def test_hits_have_a_jpeg_unless_the_file_is_gone(connect):
    hits = {hit["item_id"]: hit for hit in connect().query(text="a dog")}
    assert len(hits) == 6
    assert "image" not in hits.pop("5.jpg")
    for hit in hits.values():
        assert shown(hit["image"]).size == (64, 48)


def test_a_picture_finds_itself(connect, tmp_path):
    (tmp_path / "query.jpg").write_bytes(picture(302))
    [best] = connect(num_images=1).query(image=str(tmp_path / "query.jpg"))
    assert best["item_id"] == "2.jpg"
    assert best["similarity"] == pytest.approx(1, abs=1e-5)


def test_an_embedding_finds_its_item(connect, mixed):
    gallery = mixed.loaded["photos"]
    vector = (gallery.vector(3) * 2).tolist()
    [best] = connect(num_images=1).query(embedding_input=vector)
    assert (best["id"], best["item_id"]) == (3, "3.jpg")


def test_a_url_is_refused_where_pictures_are_not_fetched(connect):
    answer = connect().query(image="https://pictures.example/a.jpg")
    assert (answer["error"]["code"], answer["error"]["param"]) == ("not_supported", "image_url")


def test_the_client_as_it_comes_gets_what_a_search_without_duplicates_gets(clip_client, server):
    plain = clip_client.ClipClient(url=f"{server.url}/knn-service", indice_name="photos")
    answer = plain.query(text="a dog")
    body = {"query": "a dog", "k": 40, "deduplicate": True}
    expected = server.client.post("/v1/galleries/photos/search", json=body).json()
    assert [hit["item_id"] for hit in answer] == [hit["id"] for hit in expected["hits"]] != []


def test_texts_come_as_captions(connect, clip_client):
    texts = connect("texts", modality=clip_client.Modality.TEXT)
    hits = {hit["line"]: hit for hit in texts.query(text=TEXTS[1])}
    assert [hits[line]["caption"] for line in range(3)] == TEXTS
    assert hits[1]["similarity"] == pytest.approx(1, abs=1e-5)
    assert not any("image" in hit for hit in hits.values())


def test_a_video_shows_its_best_moment(connect, server):
    [hit] = connect("films").query(text="a dog")
    [wanted] = native(server, "a dog", "films")
    thumbnail = server.client.get(wanted["thumbnail"]).content
    assert base64.b64decode(hit["image"]) == thumbnail
    [described] = ask(server, "/metadata", {"ids": [0], "indice_name": "films"})
    assert shown(described["metadata"]["image"]).size == (256, 192)


def test_the_client_survives_every_error(connect, server):
    unknown = connect("nope").query(text="a dog")
    assert unknown["error"]["code"] == "gallery_not_found"
    wrong = connect("texts").query(text="a dog")
    assert wrong["error"]["param"] == "modality"
    assert "text" in wrong["error"]["message"]
    assert connect(num_images=-1).query(text="a")["error"]["param"] == "num_images"
    assert connect().query(text=" ")["error"]["code"] == "text_empty"
    short = connect().query(embedding_input=[1.0, 2.0])
    assert (short["error"]["code"], short["error"]["param"]) == (
        "embedding_length",
        "embedding_input",
    )
    assert connect(url=f"{server.url}/knn").query(text="a")["error"]["code"] == "route_not_found"


def test_a_key_goes_in_the_url(connect, serve, mixed):
    running = serve(found=mixed, api_key_sha256=(KEY_SHA256,))
    url = f"{running.url}/knn-service"
    assert connect(url=url).query(text="a")["error"]["code"] == "invalid_api_key"
    with_key = url.replace("//", f"//client:{KEY}@")
    assert len(connect(url=with_key).query(text="a")) == 6


def test_what_the_front_sends_is_searched(server):
    hits = ask(server, "/knn-service", FRONT)
    assert len(hits) == 6  # fewer than num_result_ids, which is more than max_k
    assert all("caption" in hit for hit in hits[:4])
    assert [set(hit) for hit in hits[4:]] == [{"id", "similarity"}] * 2
    similarities = [hit["similarity"] for hit in hits]
    assert similarities == sorted(similarities, reverse=True)


def test_the_front_scrolls_on_by_metadata(server):
    hits = ask(server, "/knn-service", FRONT)
    ids = [hit["id"] for hit in hits[4:]]
    described = ask(server, "/metadata", {"ids": ids, "indice_name": "photos"})
    assert [entry["id"] for entry in described] == ids
    for entry in described:
        known = entry["metadata"]
        assert known["caption"] == f"photo {known['item_id'][0]}"
        assert ("image" in known) == (known["item_id"] != "5.jpg")
    assert ask(server, "/metadata", {"ids": [], "indice_name": "photos"}) == []


def test_indices_are_the_galleries(server):
    assert server.client.get("/indices-list").json() == ["films", "photos", "texts"]


def test_the_first_input_counts(server, mixed):
    image = base64.b64encode(picture(304)).decode()
    vector = mixed.loaded["photos"].vector(1).tolist()
    both = {**FRONT, "text": "", "image": image, "embedding_input": vector}
    assert ask(server, "/knn-service", both)[0]["id"] == 4
    only = {**both, "image": "", "num_images": 1}
    assert ask(server, "/knn-service", only)[0]["id"] == 1
    by_text = ask(server, "/knn-service", {**both, "text": "a dog"})
    assert [h["id"] for h in by_text] == [h["id"] for h in ask(server, "/knn-service", FRONT)]


def test_nothing_asked_for_is_an_empty_list(server):
    assert ask(server, "/knn-service", {**FRONT, "num_result_ids": 0}) == []
    few = ask(server, "/knn-service", {**FRONT, "num_images": 0, "num_result_ids": 2})
    assert [set(hit) for hit in few] == [{"id", "similarity"}] * 2


def test_results_are_as_many_as_pictures_if_not_said(server):
    body = {key: FRONT[key] for key in ("text", "modality", "num_images", "indice_name")}
    assert len(ask(server, "/knn-service", body)) == 4


def test_thumbnails_end_at_their_limit_and_metadata_go_on(server, monkeypatch):
    monkeypatch.setattr(knn, "MAX_THUMBNAILS", 1)
    hits = ask(server, "/knn-service", {**FRONT, "num_images": 3})
    expected = [True, False, False] if hits[0]["item_id"] != "5.jpg" else [False] * 3
    assert ["image" in hit for hit in hits[:3]] == expected
    assert all("caption" in hit for hit in hits[:3])


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"text": None}, "query_missing", "text"),
        ({"text": 5}, "invalid_value", "text"),
        ({"text": "a" * 9000}, "text_too_long", "text"),
        ({"text": "", "image": "%%%"}, "invalid_base64", "image"),
        ({"text": "", "image": "aGVsbG8="}, "image_unsupported_format", "image"),
        ({"text": "", "embedding_input": [0.0] * 32}, "embedding_values", "embedding_input"),
        ({"text": "", "embedding_input": ["1"] * 32}, "invalid_value", "embedding_input.0"),
        ({"modality": "video"}, "invalid_value", "modality"),
        ({"num_images": "4"}, "invalid_value", "num_images"),
        ({"num_result_ids": -1}, "invalid_value", "num_result_ids"),
        ({"indice_name": None}, "invalid_value", "indice_name"),
    ],
)
def test_bad_field_is_a_422_that_names_it(server, fields, code, param):
    error = error_of(post(server, "/knn-service", {**FRONT, **fields}), 422)
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize("missing", ["modality", "num_images", "indice_name"])
def test_required_fields_are_required(server, missing):
    body = {key: value for key, value in FRONT.items() if key != missing}
    assert error_of(post(server, "/knn-service", body), 422)["param"] == missing


@pytest.mark.parametrize(
    ("ids", "param"),
    [([0, 6], "ids.1"), ([-1], "ids.0"), ([10**30], "ids.0"), (["0"], "ids.0"), (5, "ids")],
)
def test_metadata_refuses_ids_that_do_not_exist(server, ids, param):
    answer = post(server, "/metadata", {"ids": ids, "indice_name": "photos"})
    assert error_of(answer, 422)["param"] == param


def test_metadata_refuses_too_many_ids(server):
    answer = post(server, "/metadata", {"ids": [0] * 1001, "indice_name": "photos"})
    assert "1,000" in error_of(answer, 422)["message"]


@pytest.mark.parametrize("path", ["/knn-service", "/metadata"])
@pytest.mark.parametrize("raw", [b"", b"{", b"NaN", b"[]"])
def test_bodies_that_are_none_are_4xx(server, path, raw):
    answer = server.client.post(path, content=raw)
    error_of(answer, 422 if raw in (b"NaN", b"[]") else 400)


def test_limits_and_deadlines_are_those_of_the_native_routes(connect, serve, mixed, encoder):
    model = GatedEncoder(encoder)
    running = serve(found=mixed, model=model, deadline_s=0.5, max_body_bytes=2000)
    client = connect(url=f"{running.url}/knn-service")
    assert client.query(text="a" * 3000)["error"]["code"] == "body_too_large"
    model.gate.clear()
    try:
        assert client.query(text="a dog")["error"]["code"] == "deadline_exceeded"
    finally:
        model.gate.set()
    wait_until(lambda: ["a dog"] in model.batches)
    assert len(client.query(text="a dog")) == 6
