"""Which `Host` names are answered: a page elsewhere cannot reach a server on loopback."""

from __future__ import annotations

import hashlib

import pytest

from service.hosts import host_name
from tests.service.conftest import error_of

SEARCH = "/v1/galleries/pets/search"
KEY = "another-long-key"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "localhost.", "127.0.0.1:8000", "127.9.9.9", "[::1]:80"]
)
def test_loopback_names_are_answered(client, host) -> None:
    answer = client.post(SEARCH, json={"query": "a"}, headers={"host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "127.0.0.1.x", "["],
)
def test_other_names_are_421_on_every_path_but_health(client, host) -> None:
    headers = {"host": host}
    for path in ("/", "/v1/galleries", "/static/app.js", "/nope"):
        error = error_of(client.get(path, headers=headers), 421)
        assert error["code"] == "host_not_allowed"
    assert client.post(SEARCH, json={"query": "a"}, headers=headers).status_code == 421
    for path in ("/livez", "/readyz"):
        assert client.get(path, headers=headers).status_code == 200


def test_allowed_hosts_are_answered(serve) -> None:
    client = serve(allowed_hosts=("photos.example.org",)).client
    for host, status in (("photos.example.org:443", 200), ("localhost", 200), ("x.org", 421)):
        assert client.get("/v1/galleries", headers={"host": host}).status_code == status


def test_any_name_is_answered_with_keys_or_in_public(serve) -> None:
    keyed = serve(api_key_sha256=(hashlib.sha256(KEY.encode()).hexdigest(),)).client
    headers = {"host": "photos.example.org", "authorization": f"Bearer {KEY}"}
    assert keyed.get("/v1/galleries", headers=headers).status_code == 200
    public = serve(host="0.0.0.0", allow_public=True).client
    assert public.get("/v1/galleries", headers={"host": "box.lan"}).status_code == 200


def test_broken_host_is_no_server_error_where_names_are_free(serve) -> None:
    client = serve(host="0.0.0.0", allow_public=True).client
    error_of(client.get("/nope", headers={"host": "["}), 404)


@pytest.mark.parametrize(
    ("header", "name"),
    [("A.b:80", "a.b"), ("[::1]", "::1"), ("a:", "a"), ("", ""), ("a:b", ""), ("[::1", "")],
)
def test_host_name_leaves_out_the_port(header, name) -> None:
    assert host_name(header) == name
