"""The examples of errors in the OpenAPI document: what the server really says.

Those with a constructor in `service.errors` come from it. The others are compared with real answers
by their test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.errors import (
    ApiError,
    error_body,
    gallery_not_found,
    internal,
    overloaded,
    past_deadline,
    to_api_error,
)
from service.jobs import PoolClosedError


@dataclass(frozen=True)
class Example:
    """One error as it is answered; for routes with one of the tags, or for all.

    The summary of a route counts as a tag that is its own.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    tags: frozenset[str] = frozenset()

    def body(self) -> dict[str, Any]:
        """What the client gets."""
        err = ApiError(self.status, self.code, self.message, param=self.param)
        return {"error": error_body(err).model_dump()}


def _of(err: ApiError, tags: frozenset[str] = frozenset()) -> Example:
    return Example(err.status, err.code, str(err), err.param, tags)


_SEARCH = frozenset({"search"})
_ITEMS = frozenset({"items"})
_EXPLAIN = frozenset({"explain"})
_GALLERY = frozenset({"search", "items", "galleries", "explain"})
_WORK = frozenset({"search", "items", "compatibility", "explain"})
_COMPATIBLE = frozenset({"compatibility"})
_LOADS = frozenset({"galleries"})
_RELOAD = frozenset({"Reload Gallery"})

# fmt: off
EXAMPLES = (
    Example(400, "invalid_json", "the body is not JSON (expected value at line 1 column 1); send "
            'something like {"query": "a dog"}', tags=_SEARCH),
    Example(400, "bad_request", "POST /v1/galleries/photos/search/upload: Missing boundary in "
            "multipart.", tags=_SEARCH),
    Example(400, "invalid_json", "the body is not JSON (expected value at line 1 column 1); send "
            'something like {"input": "a dog"}', tags=_COMPATIBLE),
    Example(400, "invalid_json", "the body is not JSON (expected value at line 1 column 1); send "
            'something like {"text": "a dog in snow", "gallery": "photos", "item_id": "a/b.jpg"}',
            tags=_EXPLAIN),
    Example(401, "invalid_api_key", "no valid API key; send it as: Authorization: Bearer KEY"),
    _of(gallery_not_found("phots"), _GALLERY),
    Example(404, "item_not_found", "gallery photos has no item 'a.jpg'; ids are paths relative to "
            "the source, or keys in its shards", tags=_ITEMS | _EXPLAIN),
    Example(404, "content_missing", "the original of 'a.jpg' cannot be served (missing)", "id",
            _ITEMS),
    Example(404, "content_changed", "the original of 'a.jpg' cannot be served (changed)", "id",
            _ITEMS),
    Example(404, "thumbnail_not_available", "text items have no thumbnail", "id", _ITEMS),
    Example(404, "model_not_found", "no model 'clip'; this server has 'cots-mini'", "model",
            _COMPATIBLE),
    Example(404, "route_not_found", "GET /v1/galleries/a/b: Not Found"),
    Example(408, "body_timeout", "the request body did not arrive within 60 s; send it faster"),
    Example(409, "version_refused", "gallery 'photos' goes on with version "
            "20260101T120000.000000Z: version 20260102T030405.000000Z was refused, a file of it is "
            "damaged, missing or cannot be read; see the server's log, build the gallery again and "
            "reload it", "gallery", _LOADS),
    Example(413, "body_too_large", "the request body is larger than 20,971,520 bytes; send a "
            "smaller one"),
    Example(415, "unsupported_content_type", "Content-Type is 'text/plain'; accepted here: "
            'application/json; send {"query": "a dog"}', tags=_SEARCH),
    Example(415, "unsupported_content_type", "Content-Type is 'text/plain'; accepted here: "
            'application/json; send {"input": "a dog"}', tags=_COMPATIBLE),
    Example(415, "unsupported_content_type", "Content-Type is 'text/plain'; accepted here: "
            'application/json; send {"text": "a dog in snow", "gallery": "photos", "item_id": '
            '"a/b.jpg"}', tags=_EXPLAIN),
    Example(416, "range_not_satisfiable", "range 'bytes=900-' is outside the content of 800 bytes",
            "range", _ITEMS),
    Example(421, "host_not_allowed", "this server is not called 'photos.example.org'; use "
            "http://localhost, or add the name to the setting allowed_hosts (COTS_ALLOWED_HOSTS)"),
    Example(422, "invalid_value", "k is 2,000; 1 to 1,000 is accepted", "k", _SEARCH),
    Example(422, "unknown_field", "unknown field limit; did you mean k?", "limit", _SEARCH),
    Example(422, "unknown_field", "unknown query parameter k; this route has none", "k",
            _LOADS),
    Example(422, "invalid_body", "this route takes no body; send none, not 3 bytes", tags=_RELOAD),
    Example(422, "query_missing", 'query is missing; give a string, {"text"}, {"image"}, '
            '{"image_url"}, {"item_id"}, {"embedding"}, or a list of these', "query", _SEARCH),
    Example(422, "query_form", "query has none of the forms; give exactly one: a string, "
            '{"text"}, {"image"}, {"image_url"}, {"item_id"}, {"embedding"}, or a list of these',
            "query", _SEARCH),
    Example(422, "query_form", "give either gallery and item_id, or image", "item_id", _EXPLAIN),
    Example(422, "query_cancels_out", "the weighted parts of query cancel out; change a weight",
            "query", _SEARCH),
    Example(422, "text_empty", "query is empty; give some words", "query", _SEARCH),
    Example(422, "text_too_long", "query has 9,001 bytes; at most 8,192 are accepted; shorten it",
            "query", _SEARCH),
    Example(422, "invalid_base64", "query.image is not base64 (Incorrect padding); send the file's "
            "bytes in base64, or a data URI", "query.image", _SEARCH),
    Example(422, "image_unsupported_format", "image is not a picture in a known format; accepted: "
            "JPEG, PNG, WEBP, GIF, BMP, TIFF", "query.image", _SEARCH),
    Example(422, "image_too_many_pixels", "image is 8000 x 8000 = 64,000,000 pixels; at most "
            "50,000,000 are accepted; make it smaller", "query.image", _SEARCH),
    Example(422, "embedding_length", "query.embedding has 3 numbers; this gallery takes 256",
            "query.embedding", _SEARCH),
    Example(422, "item_not_found", "gallery photos has no item 'a.jpg'; ids are paths relative to "
            "the source, or keys in its shards", "query.item_id", _SEARCH),
    Example(422, "too_many_vectors", "include asks for embedding of 20,000 hits; at most 10,000 of "
            "one request have them; ask for fewer queries or hits", "include", _SEARCH),
    Example(422, "invalid_filter", "filter.year.gte is given a text, and the column holds numbers; "
            "accepted are numbers", "filter.year.gte", _SEARCH),
    Example(422, "image_url_refused", "query.image_url: the host has no public address; give a url "
            "of the public internet", "query.image_url", _SEARCH),
    Example(422, "text_empty", "input.3 is empty; give some words", "input.3", _COMPATIBLE),
    Example(422, "invalid_value", "dimensions is 128; 'cots-mini' gives 256, and was not trained "
            "to be cut; leave dimensions out", "dimensions", _COMPATIBLE),
    Example(422, "invalid_value", "size is 4096; 16 to 1024 are accepted", "size", _ITEMS),
    _of(overloaded()),
    _of(internal()),
    Example(503, "gallery_unavailable", "gallery 'photos' is damaged and not served; see the "
            "server's log", "gallery", _GALLERY),
    _of(to_api_error(PoolClosedError()), _WORK),
    _of(past_deadline()),
    Example(504, "content_timeout", "the original of 'a.jpg' cannot be served (timeout)", "id",
            _ITEMS),
)
# fmt: on
