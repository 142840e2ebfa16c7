"""The examples of errors in the OpenAPI document are what the server says, word for word."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image

from index_builder.content import file_uri
from index_builder.items import Item
from index_builder.manifest import INDEX_FILE
from service.errors import gallery_not_found, internal, overloaded, past_deadline, to_api_error
from service.galleries import Registry
from service.jobs import PoolClosedError
from service.openapi_examples import EXAMPLES, Example
from tests.galleries import publish_texts
from tests.index_builder.stores import publish_gallery, unit_vectors
from tests.service.conftest import Running, picture
from tests.service.versions import cut, publish_copy

GALLERY = "/v1/galleries/photos"
SEARCH = f"{GALLERY}/search"
ITEMS = f"{GALLERY}/items"
_EMBED = "/v1/embeddings"
_EXPLAIN = "/v1/explain"

Key = tuple[int, str, str]
Servers = SimpleNamespace


def _photo(path: Path, *, keep: bytes | None) -> Item:
    """An item that was indexed as it is, and a file that became `keep` since, or went."""
    data = path.read_bytes()
    if keep is None:
        path.unlink()
    elif keep != data:
        path.write_bytes(keep)
    return Item(
        id=path.name,
        uri=file_uri(str(path)),
        size_bytes=len(data),
        mtime_s=1.0,
        sha256=hashlib.sha256(data).hexdigest(),
        metadata={"year": 2020},
    )


@pytest.fixture(scope="module")
def servers(serve, encoder, tmp_path_factory) -> Servers:
    """A server of three galleries, one damaged, and others whose settings say no sooner."""
    folder = tmp_path_factory.mktemp("examples")
    source, root = folder / "source", folder / "root"
    source.mkdir()
    for seed, name in enumerate(("changed.jpg", "gone.jpg", "here.jpg")):
        (source / name).write_bytes(picture(seed))
    items = [
        _photo(source / "changed.jpg", keep=picture(9)),
        _photo(source / "gone.jpg", keep=None),
        _photo(source / "here.jpg", keep=picture(2)),
    ]
    vectors_NE = unit_vectors(len(items), encoder.dim)
    given = {"fingerprint": encoder.fingerprint, "source": str(source)}
    publish_gallery(root / "photos", vectors_NE, items, **given)
    (source / "words.txt").write_text("a dog\na cat", "utf-8")
    publish_texts(root / "words", encoder, ["a dog", "a cat"], source / "words.txt")
    publish_copy(root / "photos", root / "bad", unseen=cut(INDEX_FILE))
    found = Registry.open(root, expected_fingerprint=encoder.fingerprint)
    publish_copy(root / "photos", root / "photos", unseen=cut(INDEX_FILE))
    key = hashlib.sha256(b"key").hexdigest()
    return Servers(
        whole=serve(
            found=found,
            image_urls=True,
            reload_interval_s=0,
            max_image_pixels=10_000,
            max_vectors=2,
        ),
        small=serve(max_body_bytes=1000, body_timeout_s=0.2),
        locked=serve(api_key_sha256=(key,)),
    )


def _post(path: str, body: object, **options: object) -> Callable[[Servers], httpx.Response]:
    return lambda servers: servers.whole.client.post(path, json=body, **options)


def _query(query: object, **options: object) -> Callable[[Servers], httpx.Response]:
    return _post(SEARCH, {"query": query, **options})


def _get(path: str, **headers: str) -> Callable[[Servers], httpx.Response]:
    return lambda servers: servers.whole.client.get(path, headers=headers)


def _raw(path: str, content: bytes, kind: str) -> Callable[[Servers], httpx.Response]:
    headers = {"content-type": kind}
    return lambda servers: servers.whole.client.post(path, content=content, headers=headers)


def _slow_body(servers: Servers) -> httpx.Response:
    """A request whose body does not come."""
    small: Running = servers.small
    url = httpx.URL(small.url)
    head = "POST /v1/galleries/pets/search HTTP/1.1\r\nhost: localhost\r\n"
    head += "content-type: application/json\r\n"
    with socket.create_connection((url.host, url.port), timeout=10) as wire:
        wire.sendall(f"{head}connection: close\r\ncontent-length: 50\r\n\r\n{{".encode())
        answer = b"".join(iter(lambda: wire.recv(65536), b""))
    head_lines, _, body = answer.partition(b"\r\n\r\n")
    return httpx.Response(int(head_lines.split()[1]), content=body)


def _large_picture() -> str:
    out = io.BytesIO()
    Image.new("RGB", (200, 100)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


_OPPOSITES = [{"embedding": [1.0] * 32}, {"embedding": [1.0] * 32, "weight": -1.0}]
PROVOKED: dict[Key, Callable[[Servers], httpx.Response]] = {
    (400, "invalid_json", "search"): _raw(SEARCH, b"a dog", "application/json"),
    (400, "bad_request", "search"): _raw(f"{SEARCH}/upload", b"", "multipart/form-data"),
    (400, "invalid_json", "compatibility"): _raw(_EMBED, b"a", "application/json"),
    (400, "invalid_json", "explain"): _raw(_EXPLAIN, b"a", "application/json"),
    (401, "invalid_api_key", ""): lambda s: s.locked.client.get("/v1/galleries"),
    (404, "item_not_found", "explain"): _get(f"{ITEMS}/none.jpg"),
    (404, "content_missing", "items"): _get(f"{ITEMS}/gone.jpg/content"),
    (404, "content_changed", "items"): _get(f"{ITEMS}/changed.jpg/content"),
    (404, "thumbnail_not_available", "items"): _get("/v1/galleries/words/items/000/thumbnail"),
    (404, "model_not_found", "compatibility"): _get("/v1/models/clip"),
    (404, "route_not_found", ""): _get("/v1/galleries/a/b"),
    (408, "body_timeout", ""): _slow_body,
    (409, "version_refused", "galleries"): lambda s: s.whole.client.post(f"{GALLERY}/reload"),
    (413, "body_too_large", ""): lambda s: s.small.client.post(SEARCH, content=bytes(2000)),
    (415, "unsupported_content_type", "search"): _raw(SEARCH, b"{}", "text/plain"),
    (415, "unsupported_content_type", "compatibility"): _raw(_EMBED, b"", "text/plain"),
    (415, "unsupported_content_type", "explain"): _raw(_EXPLAIN, b"", "text/plain"),
    (416, "range_not_satisfiable", "items"): _get(f"{ITEMS}/here.jpg/content", range="bytes=9999-"),
    (421, "host_not_allowed", ""): _get("/", host="photos.example.org"),
    (422, "invalid_value", "search"): _query("a", k=2000),
    (422, "unknown_field", "search"): _query("a", limit=3),
    (422, "unknown_field", "galleries"): _get("/v1/galleries?k=5"),
    (422, "invalid_body", "Reload Gallery"): _post(f"{GALLERY}/reload", "a"),
    (422, "query_missing", "search"): _post(SEARCH, {}),
    (422, "query_form", "search"): _query({}),
    (422, "query_form", "explain"): _post(_EXPLAIN, {"text": "a", "gallery": "photos"}),
    (422, "query_cancels_out", "search"): _query(_OPPOSITES),
    (422, "text_empty", "search"): _query(" "),
    (422, "text_too_long", "search"): _query("a" * 9001),
    (422, "invalid_base64", "search"): _query({"image": "aGVsbG8"}),
    (422, "image_unsupported_format", "search"): _query({"image": "aGVsbG8="}),
    (422, "image_too_many_pixels", "search"): _query({"image": _large_picture()}),
    (422, "embedding_length", "search"): _query({"embedding": [1.0, 2.0, 3.0]}),
    (422, "item_not_found", "search"): _query({"item_id": "none"}),
    (422, "too_many_vectors", "search"): _query("a", include=["embedding"]),
    (422, "invalid_filter", "search"): _query("a", filter={"year": {"gte": "2020"}}),
    (422, "image_url_refused", "search"): _query({"image_url": "http://127.0.0.1/a.jpg"}),
    (422, "text_empty", "compatibility"): _post(_EMBED, {"input": ["a", "b", "c", ""]}),
    (422, "invalid_value", "compatibility"): _post(_EMBED, {"input": "a", "dimensions": 1}),
    (422, "invalid_value", "items"): _get(f"{ITEMS}/here.jpg/thumbnail?size=4096"),
    (503, "gallery_unavailable", "explain"): _get("/v1/galleries/bad"),
}  # fmt: skip
MADE = [gallery_not_found("phots"), overloaded(), internal(), past_deadline()]
MADE += [to_api_error(PoolClosedError())]


def key_of(example: Example) -> Key:
    return example.status, example.code, min(example.tags, default="")


def plain(message: str) -> str:
    """Without the names, numbers, paths and versions that are of one request."""
    message = re.sub(r"\d{8}T\d{6}\.\d{6}Z", "VERSION", message)
    message = re.sub(r"'[^']*'", "NAME", message)
    message = re.sub(r"(gallery|query|input|filter)\.\d+", r"\1.N", message)
    return re.sub(r"\d[\d,.]*", "N", message)


EXAMPLE = {key_of(example): example for example in EXAMPLES}


def test_every_example_is_compared_with_the_real_error() -> None:
    made = {(err.status, err.code) for err in MADE}
    by_constructor = {key for key in EXAMPLE if key[:2] in made}
    alike = {(504, "content_timeout", "items")}
    assert EXAMPLE.keys() - by_constructor - alike == PROVOKED.keys()
    for err in MADE:
        assert str(err) in {example.message for example in EXAMPLES if example.code == err.code}
    missing = EXAMPLE[404, "content_missing", "items"]
    assert EXAMPLE[504, "content_timeout", "items"] == replace(
        missing,
        status=504,
        code="content_timeout",
        message=missing.message.replace("missing", "timeout"),
    )


@pytest.mark.parametrize("key", PROVOKED, ids=lambda key: "-".join(map(str, key)))
def test_example_is_what_the_server_says(servers, key) -> None:
    example = EXAMPLE[key]
    answer = PROVOKED[key](servers)
    assert answer.status_code == example.status, answer.text
    said, shown = answer.json()["error"], example.body()["error"]
    assert plain(said.pop("message")) == plain(shown.pop("message"))
    said["param"], shown["param"] = plain(str(said["param"])), plain(str(shown["param"]))
    assert said == shown


def test_the_comparison_sees_other_words() -> None:
    one = "k is 2,000; 1 to 1,000 is accepted"
    assert plain(one) == plain("k is 3; 1 to 7 is accepted")
    assert plain(one) != plain("k is 2,000; at least 1,000 is accepted")
    assert plain("gallery 'a' goes on, see the server's log") == (
        "gallery NAME goes on, see the server's log"
    )
