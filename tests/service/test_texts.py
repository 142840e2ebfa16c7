"""Text galleries over HTTP: found by words and by pictures, shown as text."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from cots_cli.search import command
from service.galleries import Registry
from tests.galleries import publish_texts
from tests.service.conftest import error_of, picture

CAPTIONS = "/v1/galleries/captions"
TEXTS = ["a dog runs in the snow", "two cats", "a café ☃\non the beach", "a <b>bold</b> man"]


@pytest.fixture(scope="module")
def galleries(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text galleries")
    source = tmp_path_factory.mktemp("texts") / "captions.txt"
    source.write_text("\n".join(TEXTS), "utf-8")
    publish_texts(folder / "captions", encoder, TEXTS, source)
    return folder


@pytest.fixture(scope="module")
def client(serve, encoder, galleries):
    return serve(found=Registry.open(galleries, expected_fingerprint=encoder.fingerprint)).client


def test_words_find_the_text_itself(client):
    for text in TEXTS:
        answer = client.post(f"{CAPTIONS}/search", json={"query": text, "k": 1})
        [hit] = answer.json()["hits"]
        assert hit["text"] == text
        assert hit["score"] == pytest.approx(1, abs=1e-5)
        assert set(hit) == {"id", "score", "uri", "text", "metadata"}


def test_a_picture_finds_texts(client):
    files = {"file": ("a.jpg", picture(1))}
    hits = client.post(f"{CAPTIONS}/search/upload", files=files).json()["hits"]
    assert sorted(hit["text"] for hit in hits) == sorted(TEXTS)
    assert [hit["score"] for hit in hits] == sorted((h["score"] for h in hits), reverse=True)


def test_content_is_the_text(client):
    for number, text in enumerate(TEXTS):
        item = client.get(f"{CAPTIONS}/items/{number:03d}").json()
        assert item["text"] == text
        assert "thumbnail" not in item
        answer = client.get(item["content"])
        assert answer.content == text.encode()
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert "sandbox" in answer.headers["content-security-policy"]
        part = client.get(item["content"], headers={"range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, text.encode()[2:5])


def test_there_is_no_thumbnail(client):
    error = error_of(client.get(f"{CAPTIONS}/items/000/thumbnail"), 404)
    assert error["code"] == "thumbnail_not_available"
    assert "text items have no thumbnail" in error["message"]


def test_there_are_no_frames(client):
    for options in ({"rank_by": "frame"}, {"include": ["frames"]}):
        answer = client.post(f"{CAPTIONS}/search", json={"query": "a", **options})
        assert error_of(answer, 422)["code"] == "not_supported"


def test_the_command_line_finds_texts_for_a_picture(galleries, checkpoint, tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture(1))
    options = ["--gallery", str(galleries / "captions"), "--checkpoint", str(checkpoint)]
    options += ["--image", str(tmp_path / "a.jpg")]
    lines = CliRunner().invoke(command, options).stdout.splitlines()
    assert sorted(line.split("  ")[-1] for line in lines) == sorted(
        text.replace("\n", " ") for text in TEXTS
    )
    hits = json.loads(CliRunner().invoke(command, [*options, "--json"]).stdout)["hits"]
    assert [set(hit) for hit in hits] == [{"id", "score", "uri", "text", "metadata"}] * len(TEXTS)
    refused = CliRunner().invoke(command, [*options, "--rank-by", "frame"])
    assert "holds text items, which have no frames" in str(refused.exception)


def test_a_time_that_nobody_knows_is_not_told(client):
    body = client.get("/v1/galleries/captions/items/000").json()
    assert body["text"] == TEXTS[0]
    assert "modified" not in body


def test_texts_are_not_explained(client):
    given = {"text": "a dog", "gallery": "captions", "item_id": "000"}
    error = error_of(client.post("/v1/explain", json=given), 422)
    assert (error["code"], error["param"]) == ("not_explainable", "gallery")
