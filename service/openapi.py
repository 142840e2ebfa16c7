"""The OpenAPI document made complete: what every route can answer besides, with examples.

FastAPI describes what a route declares. Errors that come from around the routes (keys, host names,
body limits, faults), examples of each error and the ways to send a key are added here, for all
routes alike, by the tags of the route.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.settings import OPEN_PATHS

DESCRIPTION = """\
Search pictures, videos and texts with words and pictures.

Every answer has an `X-Request-Id`. Errors are `{"error": {"message", "type", "param", "code"}}`;
programs go by `code`. A 429 or 503 that says `Retry-After` may be sent again after so many seconds.
"""

_SCHEMA = {"$ref": "#/components/schemas/ErrorResponse"}
_JSON = "application/json"


@dataclass(frozen=True)
class Example:
    """One error as it is answered; for routes with one of the tags, or for all."""

    status: int
    code: str
    message: str
    param: str | None = None
    tags: frozenset[str] = frozenset()


_SEARCH = frozenset({"search"})
_ITEMS = frozenset({"items"})
_GALLERY = frozenset({"search", "items", "galleries"})
_WORK = frozenset({"search", "items", "compatibility"})
_COMPATIBLE = frozenset({"compatibility"})
_LOADS = frozenset({"galleries"})

# fmt: off
EXAMPLES = (
    Example(400, "invalid_json", "the body is not JSON (expected value at line 1 column 1); send "
            'something like {"query": "a dog"}', tags=_SEARCH),
    Example(400, "bad_request", "POST /v1/galleries/photos/search/upload: Missing boundary in "
            "multipart.", tags=_SEARCH),
    Example(400, "invalid_json", "the body is not JSON (expected value at line 1 column 1); send "
            'something like {"input": "a dog"}', tags=_COMPATIBLE),
    Example(401, "invalid_api_key", "no valid API key; send it as: Authorization: Bearer KEY"),
    Example(404, "gallery_not_found", "no gallery 'phots'; GET /v1/galleries lists those there are",
            "gallery", _GALLERY),
    Example(404, "item_not_found", "gallery photos has no item 'a.jpg'; ids are paths relative to "
            "the source, or keys in its shards", tags=_ITEMS),
    Example(404, "content_missing", "the original of 'a.jpg' cannot be served (missing)", "id",
            _ITEMS),
    Example(404, "content_changed", "the original of 'a.jpg' cannot be served (changed)", "id",
            _ITEMS),
    Example(404, "thumbnail_not_available", "text items have no thumbnail", "id", _ITEMS),
    Example(404, "model_not_found", "no model 'clip'; this server has 'cots-mini'", "model",
            _COMPATIBLE),
    Example(404, "route_not_found", "GET /v1/galleries/a/b: Not Found"),
    Example(408, "body_timeout", "the request body did not arrive within 60 s; send it faster"),
    Example(409, "version_refused", "version 20260102T030405.000000Z of gallery 'photos' was "
            "refused (damaged); the one before is served", "gallery", _LOADS),
    Example(413, "body_too_large", "the request body is larger than 20,971,520 bytes; send a "
            "smaller one"),
    Example(415, "unsupported_content_type", "Content-Type is 'text/plain'; accepted here: "
            'application/json; send {"query": "..."}', tags=_SEARCH),
    Example(415, "unsupported_content_type", "Content-Type is 'text/plain'; accepted here: "
            'application/json; send {"input": "..."}', tags=_COMPATIBLE),
    Example(416, "range_not_satisfiable", "range 'bytes=900-' is outside the content of 800 bytes",
            "range", _ITEMS),
    Example(421, "host_not_allowed", "this server is not called 'photos.example.org'; use "
            "http://localhost, or add the name to the setting allowed_hosts (COTS_ALLOWED_HOSTS)"),
    Example(422, "invalid_value", "k is 2,000; at most 1,000 is accepted", "k", _SEARCH),
    Example(422, "unknown_field", "limit is not a field of this request; see /docs for those that "
            "are", "limit", _SEARCH),
    Example(422, "query_missing", 'query is missing; give a string, {"text"}, {"image"}, '
            '{"item_id"}, {"embedding"}, or a list of these', "query", _SEARCH),
    Example(422, "query_form", "query has none of the forms; give exactly one", "query", _SEARCH),
    Example(422, "query_cancels_out", "the weighted parts of query.0 cancel out; change a weight",
            "query.0", _SEARCH),
    Example(422, "text_empty", "query is empty; give some words", "query", _SEARCH),
    Example(422, "text_too_long", "query has 9,001 bytes; at most 8,192 are accepted; shorten it",
            "query", _SEARCH),
    Example(422, "invalid_base64", "query.image is not base64 (Incorrect padding); send the file's "
            "bytes in base64, or a data URI", "query.image", _SEARCH),
    Example(422, "image_unsupported_format", "the picture is of no accepted format; send JPEG, "
            "PNG, WebP, GIF, BMP or TIFF", "query", _SEARCH),
    Example(422, "image_too_many_pixels", "the picture has 64,000,000 pixels; at most 50,000,000 "
            "are accepted", "query", _SEARCH),
    Example(422, "embedding_length", "query.embedding has 3 numbers; this gallery takes 256",
            "query.embedding", _SEARCH),
    Example(422, "item_not_found", "gallery photos has no item 'a.jpg'; ids are paths relative to "
            "the source, or keys in its shards", "query.item_id", _SEARCH),
    Example(422, "invalid_filter", "filter.year.gte is given a text, and the column holds numbers; "
            "give a number",
            "filter.year.gte", _SEARCH),
    Example(422, "image_url_refused", "query.image_url leads to an address that is not public",
            "query.image_url", _SEARCH),
    Example(422, "text_empty", "input.3 is empty; give some words", "input.3", _COMPATIBLE),
    Example(422, "invalid_value", "dimensions is 128; this model has 256", "dimensions",
            _COMPATIBLE),
    Example(422, "invalid_value", "size is 4096; 16 to 1024 are accepted", "size", _ITEMS),
    Example(429, "queue_full", "the service is busy and its queue is full; try again after the "
            "Retry-After seconds"),
    Example(500, "internal_error", "the service failed on this request; report it with the "
            "X-Request-Id header"),
    Example(503, "gallery_unavailable", "gallery 'photos' is damaged and not served; see the "
            "server's log", "gallery", _GALLERY),
    Example(503, "shutting_down", "the service is shutting down; send the request to another "
            "instance", tags=_WORK),
    Example(504, "deadline_exceeded", "the request did not finish before its deadline and was "
            "dropped; try again later"),
    Example(504, "content_timeout", "the original of 'a.jpg' cannot be served (timeout)", "id",
            _ITEMS),
)
# fmt: on

_TITLES = {
    400: "The body is not JSON, or not a form",
    401: "No valid API key",
    404: "Not found",
    409: "The new version was refused",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "Content-Type is not accepted",
    416: "The range is outside the content",
    421: "The server is not called by this Host name",
    422: "A field is not accepted",
    429: "The queue is full",
    500: "A fault of the server",
    503: "Not available",
    504: "The deadline passed and the work was dropped",
}
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_REQUEST_ID = {"description": "id of the request, also in the log", "schema": {"type": "string"}}
_RETRY_AFTER = {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}
_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "browser": {"type": "http", "scheme": "basic", "description": "the password is the key"},
}


def complete(document: dict[str, Any], *, with_keys: bool) -> dict[str, Any]:
    """Add to FastAPI's document, in place, what it does not know; done once.

    Args:
        document: of the routes.
        with_keys: whether API keys are asked for.
    """
    if document.get("x-complete"):
        return document
    for path, methods in document["paths"].items():
        for operation in methods.values():
            _hoist_definitions(document, operation)
            _complete_operation(operation, is_open=path in OPEN_PATHS, with_keys=with_keys)
    if with_keys:
        document.setdefault("components", {})["securitySchemes"] = _SCHEMES
        document["security"] = [{name: []} for name in _SCHEMES]
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape of a 422
        document.get("components", {}).get("schemas", {}).pop(unused, None)
    document["x-complete"] = True
    return document


def _hoist_definitions(document: dict[str, Any], operation: dict[str, Any]) -> None:
    """Move what a body's schema defines to where its references look for it."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for media in operation.get("requestBody", {}).get("content", {}).values():
        schemas.update(media.get("schema", {}).pop("$defs", {}))


def _complete_operation(operation: dict[str, Any], *, is_open: bool, with_keys: bool) -> None:
    if is_open and with_keys:
        operation["security"] = []
    responses = operation["responses"]
    if not _checks_parameters(operation) and _is_fastapis(responses.get("422", {})):
        del responses["422"]
    for status in _around(has_body="requestBody" in operation, is_open=is_open):
        responses.setdefault(str(status), {"content": {_JSON: {"schema": _SCHEMA}}})
    tags = frozenset(operation.get("tags", ()))
    for key, response in responses.items():
        response.setdefault("headers", {})["X-Request-Id"] = _REQUEST_ID
        if not key.isdigit() or int(key) < 400:
            continue
        if key == "429":
            response["headers"]["Retry-After"] = _RETRY_AFTER
        _complete_error(int(key), response, tags)
    operation["responses"] = dict(sorted(responses.items()))


def _checks_parameters(operation: dict[str, Any]) -> bool:
    """Whether a value can be refused before the route sees it; names in paths never are."""
    parameters = operation.get("parameters", ())
    plain = {"path": "string"}
    return any(plain.get(p["in"]) != p.get("schema", {}).get("type") for p in parameters)


def _is_fastapis(response: dict[str, Any]) -> bool:
    """Whether FastAPI added this 422 of its own accord."""
    schema = response.get("content", {}).get(_JSON, {}).get("schema", {})
    return str(schema.get("$ref", "")).endswith("/HTTPValidationError")


def _around(*, has_body: bool, is_open: bool) -> list[int]:
    """Statuses that come from around the route."""
    guards = [] if is_open else [401, 421]
    body = [408] if has_body else []
    return [*guards, *body, 413, 500]


def _complete_error(status: int, response: dict[str, Any], tags: frozenset[str]) -> None:
    content = response.setdefault("content", {})
    media = content.setdefault(_JSON, {"schema": _SCHEMA})
    reference = media.get("schema", {}).get("$ref", "")
    if _is_fastapis(response):
        media["schema"] = _SCHEMA
    elif reference != _SCHEMA["$ref"]:
        return  # a shape of its own, with its own examples
    response["description"] = _TITLES.get(status, f"Error {status}")
    fitting = [e for e in EXAMPLES if e.status == status and (not e.tags or e.tags & tags)]
    if fitting and "examples" not in media and "example" not in media:
        media["examples"] = {_name(n, fitting): _shown(e) for n, e in enumerate(fitting)}


def _name(number: int, examples: list[Example]) -> str:
    code = examples[number].code
    earlier = [example for example in examples[:number] if example.code == code]
    return f"{code}_{len(earlier) + 1}" if earlier else code


def _shown(example: Example) -> dict[str, Any]:
    kind = "server_error" if example.status >= 500 else "invalid_request_error"
    error = {
        "message": example.message,
        "type": _KINDS.get(example.status, kind),
        "param": example.param,
        "code": example.code,
    }
    return {"summary": example.code, "value": {"error": error}}
