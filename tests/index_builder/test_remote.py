"""Reading urls: a real S3 server, web servers good and bad, and a file system that counts."""

import http.server
import io
import logging
import socket
import threading
from functools import partial
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cots_model.errors import InputError
from index_builder import remote
from index_builder.content import ContentError, Location, open_location, read_location
from index_builder.location import Stamp
from index_builder.protocols import explain
from index_builder.sources.open import open_source
from tests.index_builder.counting import CountingFileSystem


def reason_of(location: Location, **options: object) -> str:
    with pytest.raises(ContentError) as caught:
        read_location(location, **options)
    assert str(caught.value)
    return caught.value.reason


def put(url: str, data: bytes) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(data)
    return url


@pytest.fixture
def counting():
    yield CountingFileSystem.start()
    MemoryFileSystem.store.clear()


@pytest.mark.parametrize("name", ["x.jpg", "a b#c?%25.jpg", "日本.jpg"])
def test_read_location_reads_an_object_and_its_members(bucket, name):
    url = put(f"{bucket}/{name}", bytes(range(100)))
    data, stamp = read_location(Location(url))
    assert data == bytes(range(100))
    [listed] = remote.list_folder(bucket)
    assert listed.stamp == stamp
    assert stamp.mtime_s > 0
    assert read_location(Location(url, 10, 5)) == (bytes(range(10, 15)), Stamp(5, stamp.mtime_s))


def test_open_location_seeks_in_an_object(bucket):
    url = put(f"{bucket}/s.tar", bytes(range(100)))
    handle, stamp = open_location(Location(url, 10, 5))
    with handle:
        assert stamp.size_bytes == 5
        assert handle.seek(-2, io.SEEK_END) == 3
        assert handle.read() == bytes([13, 14])
        assert handle.seek(1) == 1
        assert handle.read(2) == bytes([11, 12])
        with pytest.raises(ValueError, match="cannot seek"):
            handle.seek(-1)


def test_read_location_says_what_is_wrong_with_a_url(bucket):
    url = put(f"{bucket}/d/s.tar", b"x" * 100)
    empty = put(f"{bucket}/empty", b"")
    assert reason_of(Location(f"{bucket}/none")) == "missing"
    assert reason_of(Location("s3://no-such-bucket/x")) == "missing"
    assert reason_of(Location(f"{bucket}/d")) == "not_a_file"
    assert reason_of(Location(url, 96, 5)) == "truncated"
    assert reason_of(Location(url), max_bytes=99) == "too_large"
    assert reason_of(Location(url, root=f"{bucket}/e")) == "outside_root"
    assert reason_of(Location(f"{bucket}/d/../x", root=f"{bucket}/d")) == "outside_root"
    assert read_location(Location(empty))[0] == b""


def test_credentials_are_in_no_message_and_no_log(bucket, monkeypatch, caplog):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://someone:never-to-be-shown@127.0.0.1:9")
    monkeypatch.setattr(remote, "REQUEST_LIMIT_S", 5)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    caplog.set_level(logging.INFO)
    try:
        with pytest.raises(ContentError) as caught:
            read_location(Location(f"{bucket}/x"))
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert "never-to-be-shown" not in str(caught.value) + caplog.text
    for url in ("s3://k:never-to-be-shown@b/x", "https://h/x?sig=never-to-be-shown"):
        with pytest.raises(InputError) as refused:
            read_location(Location(url))
        assert "never-to-be-shown" not in str(refused.value)


def test_a_member_of_a_shard_takes_one_ranged_request(counting):
    url = put("counting://s.tar", bytes(300) * 1000)
    counting.clear()
    for at in (0, 1000, 2000):
        read_location(Location(url, at, 500))
    assert counting == [("info",), *[("bytes", at, at + 500) for at in (0, 1000, 2000)]]


def test_a_large_object_is_read_in_pieces_and_opened_without_reading(counting, monkeypatch):
    monkeypatch.setattr(remote, "_PIECE_BYTES", 100)
    data = bytes(range(250))
    url = put("counting://x.jpg", data)
    counting.clear()
    assert read_location(Location(url))[0] == data
    assert counting[1:] == [("bytes", 0, 100), ("bytes", 100, 200), ("bytes", 200, 250)]
    counting.clear()
    open_location(Location(url))[0].close()
    assert counting == [("info",)]


def test_random_access_keeps_the_last_blocks_only(counting):
    size = 40 * remote.BLOCK_BYTES
    url = put("counting://film.mp4", bytes(size))
    counting.clear()
    handle, _ = open_location(Location(url))
    with handle:
        for at in (0, 10, size - 5, 20, size - 9):
            handle.seek(at)
            handle.read(3)
    assert [entry for entry in counting if entry[0] == "bytes"] == [
        ("bytes", 0, remote.BLOCK_BYTES),
        ("bytes", size - remote.BLOCK_BYTES, size),
    ]


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(remote, "REQUEST_LIMIT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.jpg"
        assert reason_of(Location(url)) == "timeout"


@pytest.fixture
def web(tmp_path):
    """A web server that knows no ranges."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_web_server_without_ranges_gives_the_right_bytes(web, tmp_path):
    file = tmp_path / "a b.bin"
    file.write_bytes(bytes(range(200)))
    data, stamp = read_location(Location(f"{web}/a%20b.bin", 10, 20))
    assert data == bytes(range(10, 30))
    assert stamp.mtime_s == int(file.stat().st_mtime)
    assert reason_of(Location(f"{web}/none.jpg")) == "missing"


@pytest.mark.parametrize(
    ("url", "cure"),
    [("gs://b/x", "pip install gcsfs"), ("az://b/x", "pip install adlfs"), ("foo://b", "s3, gs")],
)
def test_a_missing_package_is_named(url, cure):
    with pytest.raises(InputError, match=cure) as caught:
        read_location(Location(url))
    assert "\n" not in str(caught.value)


def test_memory_files_are_missing_elsewhere():
    with pytest.raises(ContentError, match="process that wrote it"):
        read_location(Location("memory://nowhere/x.jpg"))


@pytest.fixture
def failing(monkeypatch):
    """A store that answers everything with one status; gives the list that holds it."""
    statuses = [503]

    class Failing(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(statuses[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-to-be-shown")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield address, statuses
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.shutdown()
        thread.join()


CALLS = {
    "look": remote.look_at,
    "list": remote.list_folder,
    "match": lambda url: remote.matching(f"{url}/*.tar"),
    "match below": lambda url: remote.matching(f"{url}/**/*.tar"),
    "source": lambda url: open_source([f"{url}/*.tar"]),
    "read": lambda url: read_location(Location(f"{url}/x.jpg")),
    "open": lambda url: open_location(Location(f"{url}/x.jpg")),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("protocol", ["s3", "http"])
@pytest.mark.parametrize(
    ("status", "name"),
    [
        (500, "500 Internal Server Error"),
        (503, "503 Service Unavailable"),
        (504, "504 Gateway Timeout"),
    ],
)
def test_a_store_that_is_down_is_not_taken_for_empty(failing, protocol, call, status, name):
    address, statuses = failing
    statuses[0] = status
    url = "s3://bucket/photos" if protocol == "s3" else f"{address}/photos"
    with pytest.raises(ContentError, match="which may pass; try again later") as caught:
        CALLS[call](url)
    assert f"the server answered {name}" in str(caught.value)
    assert caught.value.reason == "unreadable"


class StoreError(Exception):
    """What a package of some store raises."""

    def __init__(self, **words: object) -> None:
        vars(self).update(words)


@pytest.mark.parametrize(
    "words",
    [
        {"status": 502},
        {"code": 502},
        {"response": SimpleNamespace(status_code=502)},
        {"response": {"ResponseMetadata": {"HTTPStatusCode": 502}}},
    ],
)
def test_whoever_keeps_the_status_it_is_found(words):
    error = FileNotFoundError("x")
    error.__cause__ = StoreError(**words)
    for one in (error, StoreError(**words)):
        told = explain(one, "gs://bucket/x.jpg")
        assert (told.reason, "answered 502 Bad Gateway" in str(told)) == ("unreadable", True)
    assert explain(FileNotFoundError("x"), "gs://bucket/x.jpg").reason == "missing"


def test_a_pattern_finds_what_fits_and_enters_only_what_may(counting):
    for name in ("a.tar", "b.jpg", "2024/a.tar", "2024/x/b.tar", "old/c.tar"):
        put(f"counting://root/{name}", b"x")
    found = {
        "*.tar": ["a.tar"],
        "20*/*.tar": ["2024/a.tar"],
        "*/?.tar": ["2024/a.tar", "old/c.tar"],
        "**/*.tar": ["2024/a.tar", "2024/x/b.tar", "a.tar", "old/c.tar"],
        "[a-c].*": ["a.tar", "b.jpg"],
        "20*": ["2024"],
        "none/*.tar": [],
    }
    for pattern, names in found.items():
        matched = remote.matching(f"counting:///root/{pattern}")
        assert [url.partition("/root/")[2] for url in matched] == names, pattern
    counting.clear()
    remote.matching("counting:///root/20*/*.tar")
    assert [note[1] for note in counting if note[0] == "ls"] == [
        "counting:///root",
        "counting:///root/2024",
    ]
    with pytest.raises(InputError, match="is no pattern"):
        remote.matching("counting:///root/a**b")


def test_a_folder_that_holds_itself_ends_the_search_for_a_pattern(monkeypatch):
    asked = []

    def list_folder(url: str) -> list[remote.Listed]:
        asked.append(url)
        stamp = Stamp(0, 0.0)
        return [remote.Listed(f"{url}/{name}", True, stamp) for name in (".", "again")]

    monkeypatch.setattr(remote, "list_folder", list_folder)
    with pytest.raises(InputError, match="it may hold itself"):
        remote.matching("memory://bucket/**/*.tar")
    assert len(asked) <= 110
