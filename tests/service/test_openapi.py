"""The OpenAPI document: complete, true (schemathesis asks every route), and shown offline."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate
from playwright.sync_api import Page, expect

from benchmarks.openapi_fuzz import fuzz
from service.openapi_examples import EXAMPLES
from service.schemas import ErrorResponse
from tests.service.conftest import Running, error_of

CASES = 100
KEY = "a-long-random-key"


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    answer: dict[str, Any] = client.get("/openapi.json").json()
    return answer


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_document_is_valid_openapi(document) -> None:
    validate(document)


def test_every_error_of_every_route_has_an_example_and_a_title(document) -> None:
    found = operations(document)
    assert len(found) >= 10
    for path, method, operation in found:
        assert operation["summary"], path
        for status, response in operation["responses"].items():
            assert response["description"], (path, method, status)
            if int(status) >= 400 and path != "/readyz":
                media = response["content"]["application/json"]
                assert media["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}
                assert media["examples"], (path, method, status)


def test_every_route_tells_of_what_is_around_it(document) -> None:
    for path, _, operation in operations(document):
        is_open = path in ("/livez", "/readyz")
        wanted = {"413", "500"} if is_open else {"401", "413", "421", "500"}
        assert wanted <= set(operation["responses"]), path
        reads = "requestBody" in operation or path.endswith("/reload")  # that there is no body
        assert ("408" in operation["responses"]) == reads, path


def body_schema(server: Running, path: str) -> dict[str, Any]:
    """Of a JSON request, with what it refers to."""
    document = server.client.get("/openapi.json").json()
    content = document["paths"][path]["post"]["requestBody"]["content"]
    schema: dict[str, Any] = content["application/json"]["schema"]
    return schema


def test_document_tells_the_limits_that_are_set(serve, server) -> None:
    own = serve(max_k=20, max_offset=30, max_queries=4, max_query_parts=5, max_text_bytes=600)
    for running, limits in ((own, (20, 30, 4, 5, 600)), (server, (1000, 10_000, 256, 16, 8192))):
        properties = body_schema(running, "/v1/galleries/{g}/search")["properties"]
        text, _, parts, _ = properties["query"]["anyOf"]
        assert limits == (
            properties["k"]["maximum"],
            properties["offset"]["maximum"],
            properties["queries"]["maxItems"],
            parts["maxItems"],
            text["maxLength"],
        )
        assert properties["k"]["default"] == 10
        given = body_schema(running, "/v1/embeddings")["properties"]["input"]
        assert given["anyOf"][1]["maxItems"] == running.settings.max_queries
        assert "x-limits" not in running.client.get("/openapi.json").text


def test_defaults_and_examples_are_within_the_limits(serve) -> None:
    server = serve(max_k=5, probe_interval_s=60.0)
    assert body_schema(server, "/v1/galleries/{g}/search")["properties"]["k"]["default"] == 5
    document = server.client.get("/openapi.json").json()
    operation = document["paths"]["/v1/galleries/{g}/search"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    answer = server.client.post("/v1/galleries/pets/search", json=example)
    assert len(answer.json()["hits"]) == 5


def test_examples_have_the_shape_of_errors_and_differ() -> None:
    keys = [(example.status, example.code, example.tags) for example in EXAMPLES]
    assert len(keys) == len(set(keys))
    for example in EXAMPLES:
        assert 400 <= example.status < 600
        assert re.fullmatch(r"[a-z0-9_]+", example.code)


def test_examples_of_the_document_are_errors(document) -> None:
    for _, _, operation in operations(document):
        for response in operation["responses"].values():
            for media in response.get("content", {}).values():
                for example in media.get("examples", {}).values():
                    ErrorResponse.model_validate(example["value"])


def test_keys_are_described_where_they_are_asked_for(serve, document) -> None:
    assert "security" not in document
    server = serve(api_key_sha256=(hashlib.sha256(KEY.encode()).hexdigest(),))
    headers = {"authorization": f"Bearer {KEY}"}
    locked = server.client.get("/openapi.json", headers=headers).json()
    assert set(locked["components"]["securitySchemes"]) == {"key", "browser"}
    assert locked["security"] == [{"key": []}, {"browser": []}]
    assert locked["paths"]["/livez"]["get"]["security"] == []
    assert "security" not in locked["paths"]["/metrics"]["get"]


def test_same_document_every_time(client) -> None:
    assert client.get("/openapi.json").content == client.get("/openapi.json").content


@pytest.mark.slow
def test_schemathesis_finds_nothing(server: Running, tmp_path) -> None:
    """All its checks on every route; `benchmarks.openapi_fuzz` asks 2,000 times each."""
    phases = ("--phases", "examples,coverage,fuzzing")
    done = fuzz(server.url, CASES, tmp_path, *phases, timeout_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.client.get("/readyz").status_code == 200


def test_routes_named_in_the_document_ask_for_keys(serve) -> None:
    server = serve(api_key_sha256=(hashlib.sha256(KEY.encode()).hexdigest(),))
    headers = {"authorization": f"Bearer {KEY}"}
    document = server.client.get("/openapi.json", headers=headers).json()
    for path, method, operation in operations(document):
        answer = server.client.request(
            method, path.format(g="pets", item_id="cat.jpg", model="any")
        )
        is_open = operation.get("security") == []
        assert (answer.status_code == 401) == (not is_open), path


def test_docs_page_needs_nothing_from_the_network(client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    references = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(references) >= 5
    for reference in references:
        assert reference.startswith("/")
        assert client.get(reference).status_code == 200, reference
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", page.text)


def test_docs_page_shows_the_routes_in_a_browser_under_its_policy(
    server: Running, page: Page
) -> None:
    page.goto(f"{server.url}/docs")
    expect(page.locator("#operations-search-search_v1_galleries__g__search_post")).to_be_visible()


def test_docs_page_asks_for_a_key_like_everything_else(serve) -> None:
    server = serve(api_key_sha256=("0" * 64,))
    for path in ("/docs", "/static/swagger-ui-bundle.js", "/openapi.json"):
        error_of(server.client.get(path), 401)
