"""The client covers the service: every route, with and without an event loop, and nothing else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cots_client import AsyncClient, Client, queries, results
from cots_client.calls import SearchOptions
from service import schemas
from service.compat.schemas import ModelBody
from tests.service.conftest import picture

NOT_WRAPPED = {
    "/metrics": "for Prometheus",
    "/embeddings": "of infinity",
    "/embeddings_image": "of infinity",
    "/models": "of infinity",
    "/models/{model}": "of infinity",
    "/health": "of infinity",
    "/v1/models/{model}": "models() tells the one there is",
    "/knn-service": "of clip-retrieval",
    "/metadata": "of clip-retrieval",
    "/indices-list": "of clip-retrieval",
}
CALLS: dict[str, Callable[[Client, Any], object]] = {
    "galleries": lambda c, _: c.galleries(),
    "gallery": lambda c, _: c.gallery("pets"),
    "reload": lambda c, _: c.reload("pets"),
    "search": lambda c, _: (c.search("pets", "red"), c.search("pets", picture(1))),
    "search_many": lambda c, _: c.search_many("pets", ["red"]),
    "iter_hits": lambda c, _: list(c.iter_hits("pets", "red", limit=1)),
    "item": lambda c, _: c.item("pets", "cat.jpg"),
    "thumbnail": lambda c, _: c.thumbnail("pets", "cat.jpg"),
    "content": lambda c, _: c.content("pets", "cat.jpg"),
    "download": lambda c, folder: c.download("pets", "cat.jpg", folder / "cat.jpg"),
    "embed": lambda c, _: c.embed("a dog"),
    "explain": lambda c, _: c.explain("a dog", gallery="pets", item_id="cat.jpg"),
    "models": lambda c, _: c.models(),
    "is_live": lambda c, _: c.is_live(),
    "is_ready": lambda c, _: c.is_ready(),
    "readiness": lambda c, _: c.readiness(),
}


class Recorder(httpx.HTTPTransport):
    """The network, and what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[tuple[str, str]] = set()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.add((request.method.lower(), request.url.path))
        return super().handle_request(request)


def methods(kind: type) -> dict[str, Callable[..., object]]:
    return {
        name: method
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and name not in ("close", "aclose")
    }


def template_of(path: str, templates: set[str]) -> str | None:
    """The route of a path: of those that fit, the one with most of it spelled out."""

    def pattern(template: str) -> str:
        return re.sub(
            r"\\\{(\w+)\\\}", lambda m: ".+" if m[1] == "item_id" else "[^/]+", re.escape(template)
        )

    fitting = [t for t in templates if re.fullmatch(pattern(t), path)]
    return max(fitting, key=lambda t: len(re.sub(r"\{\w+\}", "", t)), default=None)


def test_every_route_is_wrapped_or_named_here(server, tmp_path) -> None:
    document = server.client.get("/openapi.json").json()
    routes = {(method, path) for path, entries in document["paths"].items() for method in entries}
    recorder = Recorder()
    with Client(server.url, transport=recorder) as client:
        for call in CALLS.values():
            call(client, tmp_path)
    paths = {path for _, path in routes}
    asked = {(method, template_of(path, paths)) for method, path in recorder.asked}
    assert asked <= routes
    assert {path for _, path in routes - asked} == NOT_WRAPPED.keys()


def test_every_method_is_called_above() -> None:
    assert methods(Client).keys() == CALLS.keys()


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    own, other = methods(Client), methods(AsyncClient)
    assert own.keys() == other.keys()
    for name, method in own.items():
        mine, theirs = inspect.signature(method), inspect.signature(other[name])
        assert mine.parameters == theirs.parameters, name
        returned = str(theirs.return_annotation).removeprefix("Async")
        assert str(mine.return_annotation) == returned, name
        assert inspect.iscoroutinefunction(other[name]) != (name == "iter_hits"), name
    assert list(inspect.signature(Client).parameters) == list(
        inspect.signature(AsyncClient).parameters
    )


@pytest.mark.parametrize(
    ("kind", "sent", "unused"),
    [
        (results.Hit, schemas.HitBody, {"row"}),
        (results.Moment, schemas.MomentBody, set()),
        (results.Frame, schemas.FrameBody, set()),
        (results.TookMs, schemas.TookMs, set()),
        (results.SearchResult, schemas.SearchResponse, {"results"}),
        (results.Gallery, schemas.GalleryBody, set()),
        (results.Index, schemas.IndexBody, set()),
        (results.Refused, schemas.RefusedBody, set()),
        (results.Reloaded, schemas.ReloadBody, set()),
        (results.Item, schemas.ItemBody, set()),
        (results.Readiness, schemas.Health, set()),
        (
            results.Model,
            ModelBody,
            {"object", "created", "owned_by", "backend", "stats"},
        ),
    ],
)
def test_results_have_the_fields_that_are_sent(kind, sent, unused) -> None:
    assert {*kind.__annotations__} == sent.model_fields.keys() - unused


def test_queries_and_options_are_those_of_the_service() -> None:
    assert {*queries.Form.__args__, "weight"} == schemas.QueryPart.model_fields.keys()
    options = {*SearchOptions.__annotations__, "k", "offset"}
    assert options == schemas.SearchOptions.model_fields.keys()
