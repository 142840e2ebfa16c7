"""Pages elsewhere: nothing by default, and named origins alone if settings name them."""

from __future__ import annotations

import json

import pytest

from cots_model.errors import ConfigError
from service.settings import Settings
from tests.compat.conftest import KEY_SHA256

PAGE = "https://front.example.org"
OTHER = "https://evil.example"
BODY = {"text": "a", "modality": "image", "num_images": 1, "indice_name": "pets"}


@pytest.fixture(scope="module")
def named(serve):
    return serve(cors_origins=(PAGE, "http://localhost:3000")).client


def preflight(client, origin, **headers):
    asked = {"access-control-request-method": "POST", **headers}
    return client.options("/knn-service", headers={"origin": origin, **asked})


def knn(client, origin):
    """The front's request: simple, without a preflight."""
    headers = {"origin": origin, "content-type": "text/plain;charset=UTF-8"}
    return client.post("/knn-service", content=json.dumps(BODY), headers=headers)


def test_no_origin_is_allowed_by_default(client):
    answer = knn(client, PAGE)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    refused = preflight(client, PAGE)
    assert refused.status_code == 405
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_named_origins_may_read_answers_and_errors(named, origin):
    answer = knn(named, origin)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in answer.headers
    assert "Origin" in answer.headers["vary"]
    error = named.get("/v1/galleries/nope", headers={"origin": origin})
    assert error.status_code == 404
    assert error.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("origin", [OTHER, "null", "http://front.example.org", f"{PAGE}:8443"])
def test_other_origins_may_not(named, origin):
    assert "access-control-allow-origin" not in knn(named, origin).headers
    refused = preflight(named, origin)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


def test_preflight_lets_json_and_keys_through(named):
    headers = {"access-control-request-headers": "authorization,content-type"}
    answer = preflight(named, PAGE, **headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    refused = preflight(named, PAGE, **{"access-control-request-headers": "x-other"})
    assert refused.status_code == 400
    assert preflight(named, PAGE, **{"access-control-request-method": "DELETE"}).status_code == 400


def test_preflight_needs_no_key_and_the_request_does(serve):
    client = serve(cors_origins=(PAGE,), api_key_sha256=(KEY_SHA256,)).client
    assert preflight(client, PAGE).status_code == 200
    answer = knn(client, PAGE)
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == PAGE


def test_origins_are_written_as_browsers_send_them():
    given = "HTTPS://Front.example.org/, https://a.example:443, http://[::1]:3000"
    settings = Settings.load(cors_origins=given)
    assert settings.cors_origins == (PAGE, "https://a.example", "http://[::1]:3000")


@pytest.mark.parametrize(
    "wrong",
    [
        "*",
        "https://*.example.org",
        "front.example.org",
        "null",
        "https://a.example/path",
        "https://u:p@a.example",
        "file:///a",
        "https://",
        "https://a:99999",
        "https://ü.example",
    ],
)
def test_what_is_no_origin_is_refused_saying_what_is(wrong):
    with pytest.raises(ConfigError, match=r"cors_origins.*(https://HOST|xn--)"):
        Settings.load(cors_origins=wrong)
