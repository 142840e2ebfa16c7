"""`POST /v1/explain`: which word of a text is where in a picture."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from cots_model.encoder import Encoder
from cots_model.explainer import Explainer
from cots_model.images import decode_image
from service import explaining
from service.explaining import ExplainJob, count_words
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
            "image",
        ),
        ({"gallery": "none"}, 404, "gallery_not_found", "gallery"),
        ({"item_id": "none"}, 404, "item_not_found", None),
        ({"text": "  "}, 422, "text_empty", "text"),
        ({"text": "... !"}, 422, "text_empty", "text"),
        ({"text": None}, 422, "invalid_value", "text"),
        ({"text": "a" + "!" * 200}, 422, "text_too_long", "text"),
        ({"text": "a" * 9000}, 422, "text_too_long", "text"),
        ({"text": "a b c d e f g h i j " * 4}, 422, None, "text"),
        ({"start_layer": 2}, 422, "invalid_value", "start_layer"),
        ({"start_layer": -1}, 422, "invalid_value", "start_layer"),
        ({"time_s": 1.0}, 422, "invalid_value", "time_s"),
        ({"words": "a"}, 422, "unknown_field", "words"),
        ({"text": ..., "words": "a"}, 422, "unknown_field", "words"),
    ],
)
def test_what_cannot_be_explained_is_said(client, monkeypatch, change, status, code, param) -> None:
    monkeypatch.setattr(explaining, "MAX_WORDS", 8)
    body = {k: v for k, v in {"text": TEXT, **ITEM, **change}.items() if v is not ...}
    error = error_of(client.post(EXPLAIN, json=body), status)
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


def slowed(monkeypatch, seconds: float) -> list[float]:
    """Each word takes so much longer; when each was begun."""
    begun_s: list[float] = []
    real = ExplainJob.go_on

    def go_on(job: ExplainJob) -> None:
        time.sleep(seconds)
        real(job)
        begun_s.append(time.monotonic())

    monkeypatch.setattr(ExplainJob, "go_on", go_on)
    return begun_s


def test_work_ends_at_the_deadline(serve, monkeypatch) -> None:
    server = serve(deadline_s=1.0, probe_interval_s=60.0)
    server.client.post(EXPLAIN, json={"text": TEXT, **ITEM})  # the first takes longer
    begun_s = slowed(monkeypatch, 0.4)
    sent_s = time.monotonic()
    assert error_of(server.client.post(EXPLAIN, json={"text": "a " * 20, **ITEM}), 504)
    time.sleep(1.0)
    assert begun_s
    assert begun_s[-1] < sent_s + 1.1


def test_work_ends_when_its_client_leaves(serve, monkeypatch) -> None:
    server = serve(probe_interval_s=60.0)
    server.client.post(EXPLAIN, json={"text": TEXT, **ITEM})
    begun_s = slowed(monkeypatch, 0.2)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + EXPLAIN, json={"text": "a " * 20, **ITEM}, timeout=0.5)
    left_s = time.monotonic()
    time.sleep(1.0)
    assert begun_s
    assert begun_s[-1] < left_s + 0.4


def test_the_deadline_counts_from_the_end_of_the_body(serve) -> None:
    server = serve(deadline_s=0.8, probe_interval_s=60.0)
    body = json.dumps({"text": TEXT, **ITEM}).encode()

    def slowly() -> Iterator[bytes]:
        yield body[:9]
        time.sleep(1.0)
        yield body[9:]

    server.client.post(EXPLAIN, json={"text": TEXT, **ITEM})
    headers = {"Content-Type": "application/json"}
    assert server.client.post(EXPLAIN, content=slowly(), headers=headers).status_code == 200


def test_work_is_counted_in_words_of_the_model(encoder) -> None:
    assert count_words(encoder, "a dog, in snow!") == 4
    assert count_words(encoder, "雪中的狗") == 4  # without spaces
    picture_ = explaining.shown(encoder, Image.new("RGB", (40, 40)))
    plain, drawn = (
        ExplainJob(picture_, "a dog", 2, overlay, 0, 0.0).work for overlay in (False, True)
    )
    assert drawn > plain > 2


def test_a_picture_waits_no_larger_than_it_is_needed(encoder) -> None:
    large = Image.new("RGB", (4000, 1000), "red")
    picture_ = explaining.shown(encoder, large)
    assert picture_.base.size == (384, 96)
    assert picture_.pixels_CHW.shape == (3, 32, 32)
    assert large.size == (4000, 1000)
