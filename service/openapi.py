"""The OpenAPI document made complete: what every route can answer besides, with examples.

FastAPI describes what a route declares. Errors that come from around the routes (keys, host names,
body limits, faults), examples of each error and the ways to send a key are added here, for all
routes alike, by the tags of the route.
"""

from __future__ import annotations

import copy
from typing import Any

from service.openapi_examples import EXAMPLES, Example
from service.settings import OPEN_PATHS, Settings

DESCRIPTION = """\
Search pictures, videos and texts with words and pictures.

Every answer has an `X-Request-Id`. Errors are `{"error": {"message", "type", "param", "code"}}`;
programs go by `code`. A 429 or 503 that says `Retry-After` may be sent again after so many seconds.
While the server loads every route but `/livez` is 503 `not_ready`. What is no request that can be
read is 400, 408 or 431 on every route.
"""

_SCHEMA = {"$ref": "#/components/schemas/ErrorResponse"}
_JSON = "application/json"

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
_REQUEST_ID = {"description": "id of the request, also in the log", "schema": {"type": "string"}}
_RETRY_AFTER = {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}
_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "browser": {"type": "http", "scheme": "basic", "description": "the password is the key"},
}


def complete(document: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """FastAPI's document, with what it does not know.

    Args:
        document: of the routes.
        settings: of the server: its limits, and whether it asks for keys.
    """
    document = copy.deepcopy(document)  # parts of it belong to the routes of all servers
    with_keys = bool(settings.api_key_sha256)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            _hoist_definitions(document, operation)
            _complete_operation(operation, is_open=path in OPEN_PATHS, with_keys=with_keys)
    if with_keys:
        document.setdefault("components", {})["securitySchemes"] = _SCHEMES
        document["security"] = [{name: []} for name in _SCHEMES]
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape of a 422
        document.get("components", {}).get("schemas", {}).pop(unused, None)
    _tell_limits(document, settings)
    return document


def _hoist_definitions(document: dict[str, Any], operation: dict[str, Any]) -> None:
    """Move what a body's schema defines to where its references look for it."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for media in operation.get("requestBody", {}).get("content", {}).values():
        schemas.update(media.get("schema", {}).pop("$defs", {}))


def _tell_limits(node: object, settings: Settings) -> None:
    """Replace the names of settings by their values, wherever a schema is bounded by one."""
    if isinstance(node, list):
        for entry in node:
            _tell_limits(entry, settings)
    if isinstance(node, dict):
        for keyword, name in node.pop("x-limits", {}).items():
            node[keyword] = getattr(settings, name)
        if isinstance(node.get("default"), int) and "maximum" in node:
            node["default"] = min(node["default"], node["maximum"])
        for entry in node.values():
            _tell_limits(entry, settings)


def _complete_operation(operation: dict[str, Any], *, is_open: bool, with_keys: bool) -> None:
    if is_open and with_keys:
        operation["security"] = []
    responses = operation["responses"]
    if not _checks_parameters(operation) and _is_fastapis(responses.get("422", {})):
        del responses["422"]
    for status in _around(has_body="requestBody" in operation, is_open=is_open):
        responses.setdefault(str(status), {"content": {_JSON: {"schema": _SCHEMA}}})
    tags = frozenset([*operation.get("tags", ()), operation.get("summary", "")])
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
    return {"summary": example.code, "value": example.body()}
