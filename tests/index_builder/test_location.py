"""Names of places: uris that lead back, roots that guard, and secrets that are never repeated."""

import os
import pickle

import pytest

from index_builder.location import (
    ContentError,
    Location,
    file_uri,
    lies_in,
    location_of,
    place_of,
    redact,
    uri_of,
    url_problem,
)

NAMES = [
    "a b#c?.jpg",
    "100%25.jpg",
    "日本/x.jpg",
    "a+b&c=d;e,f@g.jpg",
    "q?versionId=1",
    'quo"te\\.jpg',
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["/data", "s3://bucket/prefix", "memory:///x"])
def test_uri_leads_back_to_the_place(name, folder):
    place = f"{folder}/{name}"
    assert place_of(uri_of(place)) == place
    assert place_of(uri_of(place, "k#1 %.jpg")) == place
    assert uri_of(place, "m.jpg").endswith("#m.jpg")
    assert not set(uri_of(place)) & set(' "\\')


def test_uri_of_a_web_address_is_the_address():
    for url in ("https://h/a%20b.jpg", "https://h/x?id=5&w=2"):
        assert uri_of(url) == url
        assert place_of(uri_of(url, "m.jpg")) == url


def test_uri_of_a_file_is_the_file_uri():
    name = os.fsdecode(b"/d/\xff.jpg")
    assert uri_of(name, "m") == file_uri(name, "m")
    assert place_of(file_uri(name)) == name
    with pytest.raises(ContentError, match="no uri"):
        place_of("/d/x.jpg")


@pytest.mark.parametrize(
    ("place", "root", "inside"),
    [
        ("/data/a/b.jpg", "/data", True),
        ("/data/b.tar", "/data/b.tar", True),
        ("/database/b.jpg", "/data", False),
        ("/data/../etc/passwd", "/data", False),
        ("s3://b/p/x.jpg", "s3://b/p", True),
        ("s3://b/p/x.jpg", "s3://b/p/", True),
        ("s3://b/px.jpg", "s3://b/p", False),
        ("s3://b/p?x.jpg", "s3://b/p", False),
        ("s3://b/p/../q.jpg", "s3://b/p", False),
        ("https://h/p/%2e%2e/q.jpg", "https://h/p", False),
        ("s3://other/p/x.jpg", "s3://b", False),
        ("memory:///x.jpg", "memory://", True),
        ("/b/x.jpg", "s3://b", False),
    ],
)
def test_lies_in_goes_by_whole_names(place, root, inside):
    assert lies_in(place, root) is inside


def test_location_of_is_guarded_by_the_root_that_holds_it():
    roots = ("/data/a.tar", "/photos", "s3://b/p")
    uri = uri_of("/data/a.tar", "x.jpg")
    assert location_of(uri, 512, 9, roots) == Location("/data/a.tar", 512, 9)
    assert location_of("file:///photos/x.jpg", None, 9, roots) == Location(
        "/photos/x.jpg", root="/photos"
    )
    assert location_of("s3://b/p/s.tar#m", 512, 9, roots) == Location(
        "s3://b/p/s.tar", 512, 9, root="s3://b/p"
    )
    for outside in ("file:///etc/passwd", "file:///photos/../etc/passwd", "s3://b/q", "gs://b/p/x"):
        with pytest.raises(ContentError) as caught:
            location_of(outside, None, None, roots)
        assert caught.value.reason == "outside_root"


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:SECRET@bucket/x.jpg",
        "s3://AKIA:abc/SECRET@bucket/x.jpg",
        "s3://AKIA:SECRET",
        "S3://AKIA:12/SECRET@bucket/x.jpg",
        "sftp://me:SECRET@host:22/x.jpg",
        "https://SECRET@h/x.jpg",
        "https://h/x.jpg?X-Amz-Signature=SECRET",
        "https://h/x.jpg?sv=1&sig=SECRET",
        "https://h/x.jpg?access_token=SECRET",
        "https://h/x.jpg?w=1&key=SECRET",
    ],
)
def test_urls_with_secrets_are_refused_and_not_repeated(url):
    assert url_problem(url)
    assert "SECRET" not in f"{redact(url)} {url_problem(url)}"


def test_urls_without_secrets_are_accepted():
    for url in (
        "s3://b/k",
        "s3://b/a:b@c::d.jpg",
        "s3://b/what?key=1",
        "https://h/x.jpg?w=100&id=7",
        "http://h:9000/a@b.jpg",
        "http://[::1]:9000/x.jpg",
        "abfs://container@account.dfs.core.windows.net/x.jpg",
        "sftp://me@host:22/x.jpg",
    ):
        assert url_problem(url) is None
    assert redact("http://h:9000/a@b.jpg is gone") == "http://h:9000/a@b.jpg is gone"
    assert url_problem("zip://a.jpg::s3://b/a.zip")


def test_content_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(ContentError("timeout", "no answer")))  # noqa: S301
    assert (error.reason, str(error)) == ("timeout", "no answer")
