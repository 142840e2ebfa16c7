"""`POST /v1/explain`: which word of a text is where in a picture."""

from __future__ import annotations

import base64
import io
import threading

import pytest
from PIL import Image

from cots_model.encoder import Encoder
from cots_model.explainer import Explainer
from cots_model.images import decode_image
from service import explaining
from tests.service.conftest import error_of, picture

EXPLAIN = "/v1/explain"
TEXT = "two dogs, in snow"
ITEM = {"gallery": "pets", "item_id": "cat.jpg"}
NONE = {"gallery": None, "item_id": None}


def test_each_word_has_a_map_of_the_picture_of_an_item(client, pictures, encoder) -> None:
    answer = client.post(EXPLAIN, json={"text": TEXT, **ITEM})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [word["word"] for word in body["words"]] == ["two", "dogs", "in", "snow"]
    found = Explainer.of(encoder).words(decode_image(pictures["cat.jpg"]), TEXT)
    assert body["similarity"] == pytest.approx(found.similarity, abs=1e-5)
    for word, expected in zip(body["words"], found.words, strict=True):
        assert TEXT[word["start"] : word["end"]] == word["word"]
        assert word["similarity"] == pytest.approx(expected.similarity, abs=1e-5)
        levels = [level for row in word["map"] for level in row]
        assert levels == pytest.approx(expected.level_hw.flatten().tolist(), abs=1e-3)
        assert (min(levels), max(levels)) == (0, 1)
        assert "overlay" not in word
    assert body["model"] == encoder.name
    assert body["took_ms"]["explain"] > 0


def test_an_overlay_is_a_png_of_the_picture(client) -> None:
    given = {"text": "a dog", "image": base64.b64encode(picture(3)).decode(), "overlay": True}
    words = client.post(EXPLAIN, json=given).json()["words"]
    assert len(words) == 2
    for word in words:
        with Image.open(io.BytesIO(base64.b64decode(word["overlay"]))) as img:
            assert img.format == "PNG"
            with Image.open(io.BytesIO(picture(3))) as original:
                assert img.width / img.height == pytest.approx(
                    original.width / original.height, 0.1
                )


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"item_id": None}, 422, "query_form", "item_id"),
        ({"gallery": None}, 422, "query_form", "gallery"),
        ({"image": "aaaa"}, 422, "query_form", "image"),
        ({**NONE, "image": "?"}, 422, "invalid_base64", "image"),
        (
            {"gallery": None, "item_id": None, "image": "aaaa"},
            422,
            "image_unsupported_format",
            None,
        ),
        ({"gallery": "none"}, 404, "gallery_not_found", "gallery"),
        ({"item_id": "none"}, 404, "item_not_found", None),
        ({"text": "  "}, 422, "invalid_value", "text"),
        ({"text": None}, 422, "invalid_value", "text"),
        ({"text": "a" * 9000}, 422, "text_too_long", "text"),
        ({"text": "a b c d e f g h i j " * 4}, 422, None, "text"),
        ({"start_layer": 2}, 422, "not_explainable", "start_layer"),
        ({"start_layer": -1}, 422, "invalid_value", "start_layer"),
        ({"time_s": 1.0}, 422, "invalid_value", "time_s"),
        ({"words": "a"}, 422, "unknown_field", "words"),
    ],
)
def test_what_cannot_be_explained_is_said(client, monkeypatch, change, status, code, param) -> None:
    monkeypatch.setattr(explaining, "MAX_WORDS", 8)
    error = error_of(client.post(EXPLAIN, json={"text": TEXT, **ITEM, **change}), status)
    assert error["code"] == (code or "text_too_long")
    assert error["param"] == param


def test_a_model_without_maps_is_refused(serve, checkpoint) -> None:
    server = serve(model=Encoder.load(checkpoint, device="cpu", precision="int8"))
    error = error_of(server.client.post(EXPLAIN, json={"text": TEXT, **ITEM}), 422)
    assert error["code"] == "not_explainable"
    assert "int8" in error["message"]


def test_searches_go_on_while_something_is_explained(serve, monkeypatch) -> None:
    server = serve()
    held, gate = threading.Event(), threading.Event()
    real = Explainer.words_of

    def hold(self, *args, **options):
        held.set()
        assert gate.wait(30)
        return real(self, *args, **options)

    monkeypatch.setattr(Explainer, "words_of", hold)
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(server.client.post(EXPLAIN, json={"text": TEXT, **ITEM}))
    )
    asking.start()
    assert held.wait(20)
    assert server.client.post("/v1/galleries/pets/search", json={"query": "red"}).status_code == 200
    gate.set()
    asking.join(30)
    assert answers[0].status_code == 200


def test_it_ends_at_the_deadline(serve, monkeypatch) -> None:
    server = serve(deadline_s=0.5)
    server.client.post(EXPLAIN, json={"text": TEXT, **ITEM})  # the first takes longer
    real = explaining._check

    def late(job) -> None:
        threading.Event().wait(1.0)
        real(job)

    monkeypatch.setattr(explaining, "_check", late)
    assert error_of(server.client.post(EXPLAIN, json={"text": TEXT, **ITEM}), 504)


def test_a_picture_waits_no_larger_than_it_is_needed(encoder) -> None:
    large = Image.new("RGB", (4000, 1000), "red")
    picture_ = explaining.shown(encoder, large)
    assert picture_.base.size == (384, 96)
    assert picture_.pixels_CHW.shape == (3, 32, 32)
    assert large.size == (4000, 1000)
