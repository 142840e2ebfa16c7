"""Items, thumbnails and originals; downloads that break, go on, and appear when they are whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from cots_client import AnswerError, APIError, InputError, NotFoundError, TransportError, wire
from service.links import item_path, parse_item_path
from tests.client.conftest import answer, error


def test_items_are_told_by_their_ids(cots, pictures) -> None:
    for item_id, data in pictures.items():
        found = cots.item("pets", item_id)
        assert (found.id, found.gallery, found.size_bytes) == (item_id, "pets", len(data))
        assert found.sha256 == hashlib.sha256(data).hexdigest()
        assert found.modified
        assert cots.content("pets", item_id).data == data


def test_items_of_texts_and_films(others) -> None:
    assert others.item("texts", "001").text == "two cats"
    assert others.content("texts", "001").content_type.startswith("text/plain")
    assert others.item("films", "walk.mp4").duration_s > 0
    assert others.item("photos", "3.jpg").metadata["year"] == 2003
    with pytest.raises(NotFoundError) as caught:
        others.content("photos", "5.jpg")
    assert caught.value.code == "content_missing"


def test_an_id_that_ends_like_a_route_is_that_item(cots) -> None:
    found = cots.item("shards", "x/thumbnail")
    assert found.id == "x/thumbnail"
    data = cots.content("shards", "x/thumbnail").data
    assert hashlib.sha256(data).hexdigest() == found.sha256
    assert data != cots.content("shards", "x").data


IDS = ["a", "a/b c.jpg", "ü/☃", "a//b", "../x", "./x", "x/thumbnail", "a/content", "100%?#&", ""]


@pytest.mark.parametrize("item_id", [*IDS, "..", "."])
def test_paths_lead_to_the_item_they_are_made_of(item_id) -> None:
    path = wire.item_path("g h", item_id)
    assert path == item_path("g h", item_id) or item_id in ("..", ".")
    for suffix, view in (("", "item"), ("/thumbnail", "thumbnail"), ("/content", "content")):
        url = httpx.URL("http://host" + path + suffix)
        address = parse_item_path({"raw_path": url.raw_path, "path": url.path})
        assert (address.item_id, address.view) == (item_id, view)


@pytest.mark.parametrize("item_id", ["none.jpg", "..", ".", "", "a//b", "../../etc"])
def test_ids_that_are_none_are_not_found(cots, item_id) -> None:
    for ask in (cots.item, cots.thumbnail, cots.content):
        with pytest.raises(NotFoundError) as caught:
            ask("pets", item_id)
        assert caught.value.code == "item_not_found"
    with pytest.raises(NotFoundError) as caught:
        cots.item("..", "cat.jpg")
    assert caught.value.code == "gallery_not_found"


@pytest.mark.parametrize("item_id", ["\ud800", "a/\udcff.jpg"])
def test_an_id_that_no_address_carries_is_refused_unsent(script, item_id) -> None:
    server = script(answer())
    for method in ("item", "thumbnail", "content"):
        with pytest.raises(InputError, match="has a surrogate"):
            server.ask(method, "pets", item_id)
    with pytest.raises(InputError, match="has a surrogate"):
        server.ask("gallery", item_id)
    assert server.requests == []


def test_an_id_longer_than_addresses_are_is_refused(script) -> None:
    server = script(answer())
    for method in ("item", "thumbnail", "content"):
        with pytest.raises(InputError, match="give a shorter name"):
            server.ask(method, "pets", "a" * 70_000)
    assert server.requests == []


def test_thumbnails_are_as_large_as_asked(cots, others) -> None:
    with Image.open(io.BytesIO(cots.thumbnail("pets", "wide.png", size=120))) as small:
        assert (small.format, max(small.size)) == ("JPEG", 120)
    end_s = others.item("films", "walk.mp4").duration_s
    times_s = (0.0, 0.9 * end_s)
    early, late = (others.thumbnail("films", "walk.mp4", time_s=t) for t in times_s)
    assert early != late
    with pytest.raises(APIError, match="size"):
        cots.thumbnail("pets", "wide.png", size=5000)


def test_ranges_are_parts_of_the_original(cots, pictures) -> None:
    data = pictures["wide.png"]
    for first, last in ((0, 9), (5, 5), (100, None), (7, 10**9)):
        part = cots.content("pets", "wide.png", first=first, last=last)
        end = None if last is None else last + 1
        assert (part.data, part.first, part.size_bytes) == (data[first:end], first, len(data))
    whole = cots.content("pets", "wide.png")
    assert (whole.data, whole.first, whole.size_bytes) == (data, 0, len(data))
    assert whole.content_type == "image/png"
    assert whole.etag == f'"{hashlib.sha256(data).hexdigest()}"'
    with pytest.raises(APIError) as caught:
        cots.content("pets", "wide.png", first=10**9)
    assert (caught.value.status, caught.value.code) == (416, "range_not_satisfiable")
    for first, last in ((-1, None), (5, 4)):
        with pytest.raises(InputError, match="are no range"):
            cots.content("pets", "wide.png", first=first, last=last)


def test_a_download_is_the_original(cots, pictures, tmp_path) -> None:
    path = tmp_path / "ünï ☃.jpg"
    assert cots.download("pets", "dogs/ünï ☃.jpg", path) == path
    assert path.read_bytes() == pictures["dogs/ünï ☃.jpg"]
    assert cots.download("pets", "cat.jpg", str(path)) == path
    assert path.read_bytes() == pictures["cat.jpg"]
    with pytest.raises(NotFoundError):
        cots.download("pets", "none.jpg", path)
    assert path.read_bytes() == pictures["cat.jpg"]
    with pytest.raises(FileNotFoundError):
        cots.download("pets", "cat.jpg", tmp_path / "nowhere" / "cat.jpg")
    assert list(tmp_path.iterdir()) == [path]


DATA = bytes(range(256)) * 10
ETAG = '"etag-1"'


class Breaking(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that ends, or breaks, after what it has."""

    def __init__(self, data: bytes, *, breaks: bool) -> None:
        self._data, self._breaks = data, breaks

    def __iter__(self) -> Iterator[bytes]:
        yield self._data
        if self._breaks:
            raise httpx.ReadError("reset")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


def body(data: bytes, *, first: int = 0, breaks: bool = False, etag: str = ETAG, **told: Any):
    """An answer with `data`, which begins at byte `first` of DATA."""
    size = told.get("size", len(DATA))
    headers = {"ETag": etag, "Content-Length": str(told.get("length", size - first))}
    if first:
        headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"

    def respond(request: httpx.Request) -> httpx.Response:
        stream = Breaking(data, breaks=breaks)
        return httpx.Response(206 if first else 200, headers=headers, stream=stream)

    return respond


def page(request: httpx.Request) -> httpx.Response:
    """What a portal shows in the place of everything."""
    stream = Breaking(b"<h1>log in</h1>", breaks=False)
    return httpx.Response(200, headers={"Content-Type": "text/html; charset=utf-8"}, stream=stream)


def test_a_page_to_log_in_is_no_thumbnail_and_no_original(script, tmp_path) -> None:
    with pytest.raises(AnswerError, match="is text/html, not image/jpeg"):
        script(page).ask("thumbnail", "photos", "a.jpg")
    with pytest.raises(AnswerError, match="a page of HTML, not an original"):
        script(page).ask("content", "photos", "a.jpg")
    with pytest.raises(AnswerError, match="a page of HTML, not an original"):
        script(page).ask("download", "photos", "a.jpg", tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_thumbnail_of_no_type_is_none(script) -> None:
    with pytest.raises(AnswerError, match="of no type, not image/jpeg"):
        script(body(DATA)).ask("thumbnail", "photos", "a.jpg")


def download(server, folder, **options: Any) -> bytes:
    path = folder / "film.mp4"
    server.ask("download", "films", "film.mp4", path, options=options)
    assert list(folder.iterdir()) == [path]
    return path.read_bytes()


def test_a_download_that_breaks_goes_on_where_it_was(script, tmp_path) -> None:
    server = script(
        body(DATA[:1000], breaks=True),
        error(503),
        body(DATA[1000:1500], first=1000, breaks=True),
        body(DATA[1500:], first=1500),
    )
    assert download(server, tmp_path) == DATA
    asked = [(r.headers.get("range"), r.headers.get("if-range")) for r in server.requests]
    assert asked == [
        (None, None),
        ("bytes=1000-", ETAG),
        ("bytes=1000-", ETAG),
        ("bytes=1500-", ETAG),
    ]
    assert {r.headers["accept-encoding"] for r in server.requests} == {"identity"}


def test_a_body_that_is_too_short_is_one_that_broke(script, tmp_path) -> None:
    server = script(body(DATA[:1000]), body(DATA[1000:], first=1000))
    assert download(server, tmp_path) == DATA


@pytest.mark.parametrize("etag", [ETAG, 'W/"weak"', ""])
def test_an_original_that_changed_begins_anew(script, tmp_path, etag) -> None:
    server = script(
        body(b"x" * 2000, breaks=True, etag=etag),
        body(DATA, etag='"etag-2"'),
    )
    assert download(server, tmp_path) == DATA
    assert server.requests[1].headers.get("range") == ("bytes=2000-" if etag == ETAG else None)


def test_tries_of_a_download_count_from_the_last_byte_that_came(script, tmp_path) -> None:
    parts = [body(DATA[n : n + 256], first=n, breaks=True) for n in range(0, len(DATA) - 256, 256)]
    server = script(*parts, body(DATA[-256:], first=len(DATA) - 256))
    assert download(server, tmp_path, max_retries=1) == DATA
    assert len(server.requests) == 10


def test_a_download_that_brings_nothing_more_ends_and_leaves_nothing(script, tmp_path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"what was there")
    server = script(body(DATA[:1000], breaks=True), body(b"", first=1000, breaks=True))
    with pytest.raises(TransportError, match="the connection broke"):
        server.ask("download", "films", "film.mp4", path)
    assert len(server.requests) == 4
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_a_download_that_begins_anew_for_ever_ends(script, tmp_path) -> None:
    server = script(body(DATA[:1000], breaks=True, etag=""))
    with pytest.raises(TransportError):
        server.ask("download", "films", "film.mp4", tmp_path / "film.mp4")
    assert len(server.requests) == 4
    assert list(tmp_path.iterdir()) == []


OTHER = bytes(range(255, -1, -1)) * 10


@pytest.mark.parametrize(
    "other",
    [
        body(OTHER[1000:], first=1000, etag='"etag-2"'),
        body(OTHER[1000:], first=1000, etag='W/"etag-1"'),
        body(OTHER[1000:], first=1000, etag=""),
        body(OTHER[1000:] + b"more", first=1000, size=len(OTHER) + 4),
    ],
)
def test_a_part_of_another_original_is_not_joined(script, tmp_path, other) -> None:
    server = script(body(DATA[:1000], breaks=True), other, body(OTHER, etag='"etag-2"'))
    assert download(server, tmp_path) == OTHER
    asked = [request.headers.get("range") for request in server.requests]
    assert asked == [None, "bytes=1000-", None]


def test_an_original_whose_size_was_not_told_goes_on(script, tmp_path) -> None:
    server = script(body(DATA[:9], breaks=True, length="?"), body(DATA[9:], first=9))
    assert download(server, tmp_path) == DATA


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br"])
def test_an_original_in_a_coding_is_refused(script, tmp_path, coding) -> None:
    def coded(request: httpx.Request) -> httpx.Response:
        stream = Breaking(gzip.compress(DATA), breaks=False)
        return httpx.Response(200, headers={"Content-Encoding": coding}, stream=stream)

    with pytest.raises(AnswerError, match=f"in the coding '{coding}'"):
        script(coded).ask("download", "films", "film.mp4", tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []


def test_an_original_is_the_one_that_its_etag_names(script, tmp_path) -> None:
    named = f'"{hashlib.sha256(DATA).hexdigest()}"'
    parts = (
        body(DATA[:700], breaks=True, etag=named),
        body(DATA[700:], first=700, etag=named),
    )
    assert download(script(*parts), tmp_path) == DATA
    (tmp_path / "film.mp4").unlink()
    with pytest.raises(AnswerError, match="are not the original of their ETag"):
        script(body(OTHER, etag=named)).ask("download", "films", "f", tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["9" * 5000, "²", "-1"])
def test_a_length_that_is_none_is_passed_over(script, tmp_path, size) -> None:
    def told(request: httpx.Request) -> httpx.Response:
        headers = [(b"Content-Length", size.encode("latin-1"))]
        return httpx.Response(200, headers=headers, stream=Breaking(DATA, breaks=False))

    assert download(script(told), tmp_path) == DATA


def test_each_pause_of_a_download_may_take_the_whole_time(script, tmp_path) -> None:
    server = script(error(503, retry_after="20"), body(DATA))
    assert download(server, tmp_path) == DATA
    assert [request.extensions["timeout"]["read"] for request in server.requests] == [30, 30]


def test_a_place_that_takes_no_file_is_told_before_anything_is_sent(script, tmp_path) -> None:
    server = script(body(DATA))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (tmp_path, "", pipe):
        with pytest.raises(OSError, match="give the name of one"):
            server.ask("download", "films", "film.mp4", place)
    assert server.requests == []
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_and_the_mode_of_a_file_stay(script, tmp_path) -> None:
    path, link = tmp_path / "private.mp4", tmp_path / "link.mp4"
    path.write_bytes(b"old")
    path.chmod(0o600)
    link.symlink_to(path.name)
    script(body(DATA)).ask("download", "films", "film.mp4", link)
    assert link.is_symlink()
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == [link, path]


def test_a_file_is_on_the_disk_before_it_takes_its_name(script, tmp_path, monkeypatch) -> None:
    path = tmp_path / "film.mp4"
    synced: list[tuple[int, bool]] = []

    def fsync(number: int) -> None:
        synced.append((os.fstat(number).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    script(body(DATA)).ask("download", "films", "film.mp4", path)
    assert synced == [(len(DATA), False)]
