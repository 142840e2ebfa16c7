"""Urls: what lies there is listed as on a disk, and no more is read than needed."""

import io
import tarfile
import threading
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cots_model.errors import CotsError, InputError
from index_builder.content import ContentError, location_of, open_location, read_location
from index_builder.remote import Listed
from index_builder.sources.entry import Candidate
from index_builder.sources.open import open_source
from index_builder.sources.shards import HEADER_BLOCK_BYTES
from tests.index_builder.conftest import save_picture
from tests.index_builder.counting import CountingFileSystem
from tests.index_builder.sources.reading import entries_of, read, write_tar

PLACES = ["file", "memory", "s3"]


@pytest.fixture
def folder(request, place):
    """The url of an empty folder with a hard name."""
    if place == "file":
        yield "file://" + str(request.getfixturevalue("tmp_path") / "copied here#1?")
    elif place == "s3":
        yield request.getfixturevalue("bucket") + "/some prefix#1?"
    else:
        yield "memory:///some prefix#1?"
        MemoryFileSystem.store.clear()


def fill(local, url):
    files = fsspec.filesystem(url.split("://")[0])
    for path in sorted(local.rglob("*")):
        if path.is_file():
            target = f"{url}/{path.relative_to(local)}"
            files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            files.pipe_file(target, path.read_bytes())


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_at_a_url_is_listed_as_on_a_disk(photos, folder):
    fill(photos, folder)
    here, there = entries_of(photos), entries_of(folder)
    assert [(e.id, e.metadata, e.filename) for e in there] == [
        (e.id, e.metadata, e.filename) for e in here
    ]
    roots = open_source([folder]).roots
    for local, remote in zip(here, there, strict=True):
        data, stamp = read_location(remote.location)
        assert data == read_location(local.location)[0]
        assert remote.stamp == stamp
        location = location_of(remote.uri, None, stamp.size_bytes, roots)
        assert read_location(location) == (data, stamp)
    assert read(folder)[2].ignored == 2  # README.md and .hidden.png


@pytest.mark.parametrize("place", PLACES)
def test_shards_at_a_url_are_listed_as_on_a_disk(tmp_path, folder):
    local = tmp_path / "local"
    local.mkdir()
    for shard in ("s-00", "s-01"):
        members = [
            (f"{shard}/{n}.{suffix}", f"{shard} {n}".encode() * (1 + 9000 * (suffix == "jpg")))
            for n in range(5)
            for suffix in ("jpg", "txt")
        ]
        write_tar(local / f"{shard}.tar", members)
    fill(local, folder)
    here, there = entries_of(local / "*.tar"), entries_of(f"{folder}/*.tar")
    assert len(there) == 10
    assert [(e.id, e.metadata) for e in there] == [(e.id, e.metadata) for e in here]
    assert [e.id for e in entries_of(f"{folder}/s-{{00..01}}.tar")] == [e.id for e in here]
    roots = open_source([f"{folder}/*.tar"]).roots
    for local_one, remote in zip(here, there, strict=True):
        data, stamp = read_location(remote.location)
        assert data == read_location(local_one.location)[0]
        assert stamp == remote.stamp
        place = location_of(remote.uri, remote.location.offset_bytes, len(data), roots)
        handle, opened = open_location(place)
        with handle:
            assert handle.read() == data
        assert opened == stamp


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_manifests_and_texts_at_a_url_are_read_as_on_a_disk(tmp_path, folder):
    save_picture(tmp_path / "images/a.png")
    (tmp_path / "items.csv").write_text("path,price\nimages/a.png,3\n")
    (tmp_path / "items.jsonl").write_text('{"path": "images/a.png", "price": 3}\n')
    (tmp_path / "items.json").write_text('[{"path": "images/a.png", "price": 3}]')
    (tmp_path / "lines.txt").write_text("a dog\n\na cat\n")
    (tmp_path / "k.json").write_text(
        '{"images": [{"filename": "a.png", "split": "val", "sentences": [{"raw": "a dog"}]}]}'
    )
    fill(tmp_path, folder)
    for name in ("items.csv", "items.jsonl", "items.json"):
        source = open_source([f"{folder}/{name}"])
        [item] = source.read()
        assert (item.id, item.metadata) == ("images/a.png", {"price": 3})
        assert read_location(item.location)[0] == (tmp_path / "images/a.png").read_bytes()
        assert location_of(item.uri, None, None, source.roots) == item.location
    [item] = entries_of(f"{folder}/k.json#val", f"{folder}/images")
    assert item.metadata["captions"] == ["a dog"]
    assert read_location(item.location)[0] == (tmp_path / "images/a.png").read_bytes()
    lines = read(f"{folder}/lines.txt", modality="text")[0]
    assert [one.text for one in lines.values()] == ["a dog", "a cat"]
    texts = read(folder, modality="text")[0]
    assert texts["lines.txt"].text == "a dog\n\na cat"


@pytest.fixture
def counting():
    yield CountingFileSystem.start()
    MemoryFileSystem.store.clear()


def test_listing_a_shard_at_a_url_passes_over_the_bodies(counting):
    body, num = bytes(1_000_000), 20
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(num):
            for name, data in ((f"{number}.jpg", body), (f"{number}.json", b'{"a": 1}')):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    with fsspec.open("counting://s.tar", "wb") as file:
        file.write(buffer.getvalue())
    counting.clear()
    candidates, skips, _ = read("counting://s.tar")
    assert (len(candidates), skips) == (num, {})
    assert all(one.metadata == {"a": 1} for one in candidates.values())
    ranges = [entry for entry in counting if entry[0] == "bytes"]
    asked = sum(end - start for _, start, end in ranges)
    assert asked <= 2 * num * HEADER_BLOCK_BYTES < len(buffer.getvalue()) / 7
    assert len(ranges) <= 2 * num
    assert counting.count(("info",)) <= 3


def test_listing_a_folder_at_a_url_asks_once_for_each(counting):
    for name in ("a.jpg", "s/b.jpg", "s/t/c.jpg", "u/d.jpg"):
        with fsspec.open(f"counting://root/{name}", "wb") as file:
            file.write(b"x")
    counting.clear()
    assert list(read("counting://root")[0]) == ["a.jpg", "s/b.jpg", "s/t/c.jpg", "u/d.jpg"]
    listed = [entry[1] for entry in counting if entry[0] == "ls"]
    assert sorted(listed) == sorted(set(listed))
    assert not [entry for entry in counting if entry[0] == "bytes"]


def test_a_bucket_with_odd_keys_is_listed_without_losing_any(bucket):
    import boto3

    client = boto3.client("s3")
    keys = [
        "a.jpg",
        "d/",
        "d/b.jpg",
        "d//c.jpg",
        "../up.jpg",
        ".hidden/x.jpg",
        "e/.x.jpg",
        "z.HEIC",
    ]
    for key in keys:
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"x")
    candidates, skips, counts = read(bucket)
    assert list(candidates) == ["a.jpg", "d/b.jpg"]
    assert skips == {"z.HEIC": "unsupported_format", "d/": "bad_name", "..": "bad_name"}
    assert counts.ignored == 2


def test_a_listing_that_fails_ends_the_build(bucket, monkeypatch):
    with fsspec.open(f"{bucket}/a/b.jpg", "wb") as file:
        file.write(b"x")
    source = open_source([f"{bucket}/a"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    fsspec.filesystem("s3", use_listings_cache=False).rm(bucket, recursive=True)
    with pytest.raises(CotsError, match="nothing was changed"):
        list(source.read())
    with pytest.raises(ContentError, match="is not there"):
        open_source([f"{bucket}/shard.tar"])


def test_a_listing_that_fails_does_not_wait_for_one_that_hangs(bucket, monkeypatch):
    released = threading.Event()

    def list_folder(url: str) -> list[Listed]:
        if url == bucket:
            return [Listed(f"{bucket}/{name}", True, None) for name in "ab"]
        if url.endswith("/a"):
            raise ContentError("timeout", "no answer")
        released.wait(60)
        return []

    monkeypatch.setattr("index_builder.sources.url_folder.list_folder", list_folder)
    started = time.monotonic()
    with pytest.raises(CotsError, match="the listing is not whole"):
        entries_of(bucket)
    took_s = time.monotonic() - started
    released.set()
    assert took_s < 30.0


def test_a_damaged_shard_at_a_url_ends_where_the_damage_is(bucket, tmp_path):
    shard = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", b"x" * 2000) for n in range(5)])
    with fsspec.open(f"{bucket}/s.tar", "wb") as file:
        file.write(shard.read_bytes()[:6000])
    candidates, skips, _ = read(f"{bucket}/s.tar")
    assert (list(candidates), skips) == (["0", "1", "2"], {"s.tar": "damaged_shard"})


def test_what_is_not_at_a_url_is_said_in_one_line(bucket):
    for name in ("none", "none.tar", "none.csv", "none/*.tar"):
        with pytest.raises(InputError) as caught:
            entries_of(f"{bucket}/{name}")
        assert "is not there" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_with_brackets_in_its_key_is_no_pattern(bucket):
    with fsspec.open(f"{bucket}/trip [2020]/a.jpg", "wb") as file:
        file.write(b"x")
    assert list(read(f"{bucket}/trip [2020]")[0]) == ["a.jpg"]


def test_entries_of_a_file_url_are_local(photos):
    [first, *_] = entries_of(f"file://{photos}")
    assert isinstance(first, Candidate)
    assert first.location.path.startswith("/")
    assert first.location.root == str(photos)
