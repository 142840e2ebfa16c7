"""Items, thumbnails, originals with byte ranges, and ids that try to get out."""

from __future__ import annotations

import hashlib
import io
import re
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from service.content import ByteRange, content_headers, parse_range
from service.errors import ApiError
from service.galleries import Registry
from service.links import item_path, parse_item_path
from service.thumbnails import ThumbnailCache
from tests.service.conftest import error_of

ITEMS = "/v1/galleries/pets/items"


def test_item_tells_what_is_known(client, pictures) -> None:
    for item_id, data in pictures.items():
        body = client.get(f"{ITEMS}/{quote(item_id)}").json()
        assert body["id"] == item_id
        assert body["sha256"] == hashlib.sha256(data).hexdigest()
        assert body["size_bytes"] == len(data)
        assert client.get(body["content"]).content == data
        assert client.get(body["thumbnail"]).status_code == 200


def test_item_slashes_may_be_encoded(client) -> None:
    for path in ("dogs/100%25%3F.jpg", "dogs%2F100%25%3F.jpg"):
        assert client.get(f"{ITEMS}/{path}").json()["id"] == "dogs/100%?.jpg"


def test_id_that_ends_like_a_route_is_reached_by_its_link(client) -> None:
    shards = "/v1/galleries/shards/items"
    assert client.get(f"{shards}/x/thumbnail").headers["content-type"] == "image/jpeg"
    link = item_path("shards", "x/thumbnail")
    assert client.get(link).json()["id"] == "x/thumbnail"
    own = client.get(f"{link}/content").content
    assert own != client.get(f"{shards}/x/content").content
    assert hashlib.sha256(own).hexdigest() == client.get(link).json()["sha256"]


@pytest.mark.parametrize(
    "item_id",
    ["a", "a/b c.jpg", "ü/☃", "a//b", "../x", "./x", "x/thumbnail", "a/content", "100%?#&"],
)
def test_item_path_round_trips_through_the_raw_path(item_id) -> None:
    for suffix, view in (("", "item"), ("/thumbnail", "thumbnail"), ("/content", "content")):
        url = httpx.URL("http://h" + item_path("g h", item_id) + suffix)
        address = parse_item_path({"raw_path": url.raw_path, "path": url.path})
        assert (address.item_id, address.view) == (item_id, view)


HOSTILE = [
    "../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "/etc/passwd",
    "%2Fetc%2Fpasswd",
    "file:///etc/passwd",
    "cat.jpg%00.png",
    "cat.jpg/../../manifest.json",
    "..\\..\\windows",
    "%c0%ae%c0%ae/x",
    "%ff%fe",
    "a" * 4000,
]


@pytest.mark.parametrize("item_id", HOSTILE)
@pytest.mark.parametrize("view", ["", "/thumbnail", "/content"])
def test_hostile_id_is_404_and_leaks_nothing(client, item_id, view) -> None:
    answer = client.get(f"{ITEMS}/{item_id}{view}")
    error_of(answer, 404)
    assert "root:" not in answer.text


@pytest.mark.parametrize("item_id", HOSTILE)
def test_hostile_id_sent_raw_is_404(server, item_id) -> None:
    """Without the client's own tidying of the path."""
    url = httpx.URL(server.url).copy_with(raw_path=f"{ITEMS}/{item_id}/content".encode())
    error_of(server.client.get(url), 404)


def test_thumbnail_is_a_jpeg_within_the_size(client) -> None:
    for size in (16, 100, 256, 1024):
        answer = client.get(f"{ITEMS}/wide.png/thumbnail", params={"size": size})
        img = Image.open(io.BytesIO(answer.content))
        assert img.format == "JPEG"
        assert img.size == (min(size, 900), round(min(size, 900) / 3))


@pytest.mark.parametrize("query", ["size=15", "size=0", "size=-1", "size=1025", "size=big", "w=9"])
def test_thumbnail_refuses_other_sizes(client, query) -> None:
    error_of(client.get(f"{ITEMS}/cat.jpg/thumbnail?{query}"), 422)


def test_thumbnail_and_content_are_revalidated_by_etag(client) -> None:
    for path in (f"{ITEMS}/cat.jpg/thumbnail", f"{ITEMS}/cat.jpg/content"):
        first = client.get(path)
        assert first.headers["cache-control"].startswith("private, max-age=")
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(path, headers={"if-none-match": '"other"'}).content == first.content
    sizes = (client.get(f"{ITEMS}/wide.png/thumbnail?size={n}").headers["etag"] for n in (64, 65))
    assert len(set(sizes)) == 2


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=5-9", 5, 9), ("bytes=100-", 100, -1), ("bytes=-7", -7, -1)],
)
def test_content_serves_a_byte_range(client, pictures, header, first, last) -> None:
    for gallery, item_id in (("pets", "cat.jpg"), ("shards", "y")):
        path = f"/v1/galleries/{gallery}/items/{item_id}/content"
        whole = client.get(path)
        size = len(whole.content)
        assert whole.status_code == 200
        assert whole.headers["accept-ranges"] == "bytes"
        part = client.get(path, headers={"range": header})
        first_at, last_at = first % size, last % size
        assert part.status_code == 206
        assert part.content == whole.content[first_at : last_at + 1]
        assert part.headers["content-range"] == f"bytes {first_at}-{last_at}/{size}"


def test_content_range_outside_is_416_with_the_size(client, pictures) -> None:
    size = len(pictures["cat.jpg"])
    for header in (f"bytes={size}-", f"bytes={size}-{size + 5}", "bytes=-0"):
        answer = client.get(f"{ITEMS}/cat.jpg/content", headers={"range": header})
        assert error_of(answer, 416)["code"] == "range_not_satisfiable"
        assert answer.headers["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    "header", ["", "bytes", "bytes=-", "lines=0-1", "bytes=5-2", "bytes=0-1,4-5"]
)
def test_content_ignores_ranges_it_does_not_serve(client, pictures, header) -> None:
    answer = client.get(f"{ITEMS}/cat.jpg/content", headers={"range": header})
    assert (answer.status_code, answer.content) == (200, pictures["cat.jpg"])


def test_content_if_range_with_another_etag_gives_the_whole(client, pictures) -> None:
    etag = client.get(f"{ITEMS}/cat.jpg/content").headers["etag"]
    for value, status in ((etag, 206), ('"old"', 200)):
        headers = {"range": "bytes=0-3", "if-range": value}
        assert client.get(f"{ITEMS}/cat.jpg/content", headers=headers).status_code == status


def test_content_type_is_never_executable(client) -> None:
    answer = client.get(f"{ITEMS}/wide.png/content")
    assert answer.headers["content-type"] == "image/png"
    assert "sandbox" in answer.headers["content-security-policy"]
    keyed = client.get("/v1/galleries/shards/items/y/content")  # by the name of its member
    assert keyed.headers["content-type"] == "image/jpeg"
    assert keyed.headers["content-disposition"] == "inline; filename*=UTF-8''y.jpg"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("a.webp", "image/webp"), ("a.b.M4V", "video/mp4"), ("a.mkv", "video/x-matroska")),
        *(("a.html", None), ("a.svg", None), ("a.jpg.gz", None), ("a.avi", None), ("a", None)),
    ],
)
def test_content_type_does_not_depend_on_the_machine(name, expected) -> None:
    headers = content_headers(name, '"x"')
    assert headers["Content-Type"] == (expected or "application/octet-stream")
    assert headers["Content-Disposition"].startswith("inline" if expected else "attachment")
    policy = headers.get("Content-Security-Policy", "")
    assert policy.startswith("default-src 'none'; media-src 'self';") == ("video" in str(expected))
    assert "script" not in policy


def test_range_whole_and_last_byte() -> None:
    assert parse_range("bytes=0-", 10) == ByteRange(0, 9, 10)
    assert parse_range("bytes=-100", 10) == ByteRange(0, 9, 10)
    assert parse_range("bytes=9-99", 10) == ByteRange(9, 9, 10)
    with pytest.raises(ApiError):
        parse_range("bytes=0-", 0)


def test_head_has_the_headers_of_get_and_no_body(client) -> None:
    paths = ["/", "/livez", "/readyz", "/v1/galleries", f"{ITEMS}/cat.jpg"]
    paths += [f"{ITEMS}/cat.jpg/thumbnail", f"{ITEMS}/cat.jpg/content", "/nope"]
    changing = {"date", "x-request-id"}
    for path in paths:
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert {k: v for k, v in head.headers.items() if k not in changing} == {
            k: v for k, v in got.headers.items() if k not in changing
        }


def test_openapi_names_every_part_of_a_path_and_what_comes_back(client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert len(paths) >= 9
    for path, methods in paths.items():
        for operation in methods.values():
            named = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
            assert operation["responses"]["200"]["content"]
    item = "/v1/galleries/{g}/items/{item_id}"
    thumbnail = paths[f"{item}/thumbnail"]["get"]
    assert list(thumbnail["responses"]["200"]["content"]) == ["image/jpeg"]
    assert "416" not in thumbnail["responses"]
    assert {"206", "304", "416"} <= paths[f"{item}/content"]["get"]["responses"].keys()


def test_vanished_original_is_404_and_search_goes_on(serve, encoder, tmp_path) -> None:
    from index_builder.build import build_gallery
    from index_builder.options import BuildOptions
    from tests.service.conftest import picture

    source = tmp_path / "pictures"
    source.mkdir()
    (source / "gone.jpg").write_bytes(picture(1))
    (source / "changed.jpg").write_bytes(picture(2))
    options = BuildOptions(sources=(str(source),), gallery=tmp_path / "g" / "here", workers=1)
    build_gallery(options, encoder)
    found = Registry.open(tmp_path / "g", expected_fingerprint=encoder.fingerprint)
    (source / "gone.jpg").unlink()
    (source / "changed.jpg").write_bytes(picture(3))
    client = serve(found=found).client
    for item_id, code in (("gone.jpg", "content_missing"), ("changed.jpg", "content_changed")):
        for view in ("thumbnail", "content"):
            answer = client.get(f"/v1/galleries/here/items/{item_id}/{view}")
            assert error_of(answer, 404)["code"] == code
            assert str(tmp_path) not in answer.text
        assert client.get(f"/v1/galleries/here/items/{item_id}").status_code == 200
    answer = client.post("/v1/galleries/here/search", json={"query": {"item_id": "gone.jpg"}})
    assert answer.json()["hits"][0]["id"] == "gone.jpg"


def test_thumbnail_cache_stays_within_its_bytes() -> None:
    cache = ThumbnailCache(max_bytes=100)
    for number in range(20):
        cache.put((str(number), 1), bytes(30))
        cache.get(("0", 1))
    held = [number for number in range(20) if cache.get((str(number), 1)) is not None]
    assert held == [0, 18, 19]  # the one in use, and the newest
    cache.put(("large", 1), bytes(101))
    assert cache.get(("large", 1)) is None
