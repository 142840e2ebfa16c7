"""What can be searched for, as it is sent; and what is refused before that."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
import pytest

from cots_client import InputError, PictureError, embedding, image, image_url, item, text
from tests.client.conftest import answer

DATA = b"not quite a picture"
CODED = base64.b64encode(DATA).decode()


def sent(script, query, **options) -> dict:
    server = script(answer())
    server.ask("search", "photos", query, **options)
    [body] = server.bodies()
    return body


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("a dog", {"text": "a dog"}),
        (text("ein Café ☃"), {"text": "ein Café ☃"}),
        (text("a dog", weight=-2), {"text": "a dog", "weight": -2}),
        (image_url("https://x.test/a.jpg"), {"image_url": "https://x.test/a.jpg"}),
        (item("dogs/rex.jpg"), {"item_id": "dogs/rex.jpg"}),
        (embedding([1, 0.5]), {"embedding": [1.0, 0.5]}),
        (embedding(np.array([1, 0.5], np.float32)), {"embedding": [1.0, 0.5]}),
        (image(DATA, weight=0.5), {"image": CODED, "weight": 0.5}),
        (["a dog"], [{"text": "a dog"}]),
        (
            ["a beach", text("people", weight=-0.5), DATA, item("x", weight=0.1)],
            [
                {"text": "a beach"},
                {"text": "people", "weight": -0.5},
                {"image": CODED},
                {"item_id": "x", "weight": 0.1},
            ],
        ),
    ],
)
def test_queries_are_sent_as_the_service_takes_them(script, query, expected) -> None:
    assert sent(script, query) == {"query": expected, "k": 10, "offset": 0}


def test_options_are_sent_and_what_is_left_out_is_the_servers(script) -> None:
    options = {
        "k": 3,
        "offset": 6,
        "min_score": 0.25,
        "filter": {"year": {"gte": 2020}},
        "deduplicate": True,
        "include": ("metadata", "frames"),
        "rank_by": "frame",
    }
    expected = {**options, "include": ["metadata", "frames"]}
    assert sent(script, "a dog", **options) == {"query": {"text": "a dog"}, **expected}
    nothing = {"min_score": None, "filter": None, "include": []}
    assert sent(script, "a dog", **nothing).keys() == {"query", "k", "offset", "include"}


def sources(folder: Path) -> list:
    path = folder / "query.jpg"
    path.write_bytes(DATA)
    return [
        DATA,
        bytearray(DATA),
        path,
        image(DATA),
        image(str(path)),
        image(path),
        [path],
        io.BytesIO(DATA),
    ]


def test_a_picture_alone_is_uploaded_as_it_is(script, tmp_path) -> None:
    for source in sources(tmp_path):
        server = script(answer())
        server.ask("search", "photos", source, k=3, deduplicate=True, filter={"year": 2020})
        [request] = server.requests
        assert request.url.path == "/v1/galleries/photos/search/upload"
        assert request.headers["content-type"].startswith("multipart/form-data")
        assert request.content.count(DATA) == 1
        for name, value in (("k", "3"), ("deduplicate", "true"), ("filter", '{"year":2020}')):
            assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in request.content


class NoPicture(os.PathLike):
    def __fspath__(self) -> str:
        return "/nowhere/query.jpg"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (7, "is a int; accepted: words, a picture"),
        (None, "is a NoneType"),
        ([], "is an empty list"),
        ([0.1, 0.2], r"\[0\] is a float; accepted: .* embedding\(\)"),
        (["a dog", ["nested"]], r"\[1\] is a list"),
        ({"text": "a dog"}, "is a dict"),
        (io.StringIO("x"), "open it with mode 'rb'"),
    ],
)
def test_what_is_no_query_is_refused_unsent(script, query, words) -> None:
    server = script(answer())
    for method, asked in (("search", query), ("search_many", [query])):
        with pytest.raises(InputError, match=words):
            server.ask(method, "photos", asked)
    assert server.requests == []


def test_a_picture_that_cannot_be_read_is_refused_unsent(script) -> None:
    server = script(answer())
    closed = io.BytesIO(DATA)
    closed.close()
    words = r"'/nowhere/query.jpg' cannot be read \(No such file"
    for query, told in ((NoPicture(), words), (closed, "cannot be read")):
        with pytest.raises(InputError, match=told) as caught:
            server.ask("search", "photos", query)
        assert isinstance(caught.value, PictureError)
    assert server.requests == []


@pytest.mark.parametrize("source", [Path("a.jpg"), DATA, bytearray(DATA), memoryview(DATA), 7])
def test_what_is_no_list_of_queries_is_refused_unsent(script, source) -> None:
    server = script(answer())
    with pytest.raises(InputError, match="takes a list of queries"):
        server.ask("search_many", "photos", source)
    assert server.requests == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: text("a", weight=float("nan")), "weight is nan"),
        (lambda: text("a", weight="1"), "weight is a str"),
        (lambda: text("a", weight=True), "weight is a bool"),
        (lambda: text(b"a"), "words is a bytes"),
        (lambda: item(5), "item_id is a int"),
        (lambda: embedding([1, float("inf")]), "NaN or infinite"),
        (lambda: embedding([[1, 2]]), "flat list of numbers"),
        (lambda: embedding(5), "flat list of numbers"),
        (lambda: embedding([10**400]), "flat list of numbers"),
        (lambda: image("/nowhere/a.jpg"), "cannot be read"),
        (lambda: image("a\0b"), "cannot be read"),
        (lambda: image(3.0), "a picture is a float"),
        (lambda: image(image(b"a")), "the picture itself"),
    ],
)
def test_parts_that_are_none_are_refused(make, words) -> None:
    with pytest.raises(InputError, match=words):
        make()


def test_the_value_of_a_part_is_not_shown() -> None:
    assert repr(text("private", weight=2)) == "Part(form='text', weight=2)"


def test_options_that_are_none_are_refused_unsent(script) -> None:
    server = script(answer())
    for method, query in (("search", "a"), ("search_many", ["a"]), ("iter_hits", "a")):
        with pytest.raises(TypeError, match=r"unknown option 'limits'; accepted: k, offset, min_"):
            server.ask(method, "photos", query, limits=5)
        with pytest.raises(InputError, match="include is 'metadata'; give a list"):
            server.ask(method, "photos", query, include="metadata")
    with pytest.raises(InputError, match="as JSON"):
        server.ask("search", "photos", "a", filter={"year": {"gte": float("nan")}})
    deep: dict = {}
    for _ in range(100_000):
        deep = {"not": deep}
    with pytest.raises(InputError, match="as JSON"):
        server.ask("search", "photos", "a", filter=deep)
    with pytest.raises(InputError, match="as JSON"):
        server.ask("search", "photos", "a lone \ud800 surrogate")
    for name in ("", None):
        with pytest.raises(InputError, match="give its name"):
            server.ask("search", name, "a")
    with pytest.raises(InputError, match="takes a list of queries"):
        server.ask("search_many", "photos", "a dog")
    with pytest.raises(InputError, match="batch_size is 0"):
        server.ask("search_many", "photos", ["a dog"], batch_size=0)
    with pytest.raises(InputError, match="page_size is 0"):
        server.ask("iter_hits", "photos", "a dog", page_size=0)
    assert server.requests == []
