"""What search takes, as JSON Schema: for the OpenAPI document, as exact as the checks are.

Bounds that are settings are named under `x-limits`; `service.openapi` puts their values in.

The checks themselves are in `service.queries` and `service.schemas`; pydantic sees `query` as any
JSON, because a bad entry of a batch has to fail alone.
"""

from __future__ import annotations

from typing import Any

from service.schemas import QueryPart, SearchOptions, SearchRequest

REFERENCE = "#/components/schemas/{model}"
"""Where `service.openapi` puts what pydantic defines beside a schema."""

_WORDS = {"type": "string", "pattern": r"\S", "x-limits": {"maxLength": "max_text_bytes"}}
_FORMS: dict[str, dict[str, Any]] = {
    "text": _WORDS,
    "image": {
        "type": "string",
        "description": "JPEG, PNG, WebP, GIF, BMP or TIFF in base64, or a data URI",
    },
    "image_url": {"type": "string", "format": "uri"},
    "item_id": {"type": "string"},
    "embedding": {"type": "array", "items": {"type": "number"}, "minItems": 1},
}


def search_schema() -> dict[str, Any]:
    """Of the body of a search: `query` or `queries`, and the options."""
    schema = SearchRequest.model_json_schema(ref_template=REFERENCE)
    properties = schema["properties"]
    properties["query"] = query_schema()
    properties["queries"] = {
        "type": ["array", "null"],
        "items": {"description": "as query; a bad one fails alone"},
        "minItems": 1,
        "x-limits": {"maxItems": "max_queries"},
        "description": "several searches; give either query or queries",
    }
    null = {"type": "null"}
    schema["oneOf"] = [
        {
            "required": ["query"],
            "properties": {"query": {"not": null}, "queries": null},
        },
        {
            "required": ["queries"],
            "properties": {"queries": {"type": "array"}, "query": null},
        },
    ]
    return schema


def query_schema() -> dict[str, Any]:
    """Of one query: words, a part, or a weighted list of parts."""
    part = part_schema()
    return {
        "anyOf": [
            _WORDS,
            part,
            {
                "type": "array",
                "items": {"anyOf": [_WORDS, part]},
                "minItems": 1,
                "x-limits": {"maxItems": "max_query_parts"},
            },
            {"type": "null"},
        ],
        "examples": [
            "two dogs playing in snow",
            {"item_id": "a/b.jpg"},
            [{"text": "a beach"}, {"text": "people", "weight": -0.5}],
        ],
    }


def part_schema() -> dict[str, Any]:
    """Of one part: exactly one of the forms, and its weight."""
    assert set(_FORMS) | {"weight"} == set(QueryPart.model_fields)
    return {
        "type": "object",
        "properties": {
            **{name: {"anyOf": [form, {"type": "null"}]} for name, form in _FORMS.items()},
            "weight": {"type": "number", "default": 1.0},
        },
        "oneOf": [
            {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in _FORMS
        ],
        "additionalProperties": False,
    }


def upload_schema() -> dict[str, Any]:
    """Of the form of an upload: the picture, and the options as texts."""
    schema = SearchOptions.model_json_schema(ref_template=REFERENCE)
    schema["properties"]["file"] = {"type": "string", "format": "binary"}
    schema["properties"]["filter"] = {
        "type": "string",
        "contentMediaType": "application/json",
        "description": "as the filter of a search, in JSON",
    }
    names = schema["properties"]["include"]["items"]
    names["enum"] = [*names["enum"], ""]  # a form says so that nothing is to be included
    schema["required"] = ["file"]
    return schema
