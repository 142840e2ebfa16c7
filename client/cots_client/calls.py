"""Every request of this client, and how its answer is read. Nothing here sends anything.

A `Call` says what to send and what comes of the answer; `exchange` says when to send it again, and
the two clients send it. Names and fields are those of the service's contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import httpx

from cots_client import queries
from cots_client.errors import AnswerError, InputError, api_error
from cots_client.queries import Part, Picture, Query
from cots_client.reading import CURE, build
from cots_client.results import (
    Content,
    Gallery,
    Item,
    Model,
    Readiness,
    Reloaded,
    SearchResult,
)
from cots_client.wire import (
    Call,
    check_original,
    content_range,
    gallery_path,
    item_path,
    media_type,
    read_json,
    reader,
    to_body,
    to_json,
)


class SearchOptions(TypedDict, total=False):
    """Options of a search beside `k` and `offset`; those left out are the server's defaults.

    Attributes:
        min_score: leave out hits below.
        filter: conditions on metadata, such as `{"year": {"gte": 2020}}`.
        deduplicate: of near-duplicates only the best.
        include: what hits have: `metadata`, `embedding`, `frames`.
        rank_by: of videos, `mean` of the frames or the best `frame`.
    """

    min_score: float | None
    filter: Mapping[str, Any] | None
    deduplicate: bool
    include: Iterable[Literal["metadata", "embedding", "frames"]]
    rank_by: Literal["mean", "frame"]


def galleries() -> Call[tuple[Gallery, ...]]:
    """`GET /v1/galleries`."""
    return Call(method="GET", path="/v1/galleries", read=_read_galleries)


def gallery(name: str) -> Call[Gallery]:
    """`GET /v1/galleries/{g}`."""
    return Call(method="GET", path=gallery_path(name), read=reader(Gallery))


def reload(name: str, *, timeout_s: float | None) -> Call[Reloaded]:
    """`POST /v1/galleries/{g}/reload`."""
    return Call(
        method="POST",
        path=f"{gallery_path(name)}/reload",
        read=reader(Reloaded),
        may_repeat=False,
        timeout_s=timeout_s,
    )


def search(
    gallery: str, query: Query, *, k: int, offset: int, options: SearchOptions
) -> Call[SearchResult]:
    """`POST /v1/galleries/{g}/search`, or `…/search/upload` for a picture alone."""
    gallery_path(gallery)
    fields = search_fields(k, offset, options)
    return search_parsed(gallery, queries.parse(query), fields)


def search_parsed(
    gallery: str, parsed: Part | tuple[Part, ...], fields: Mapping[str, Any]
) -> Call[SearchResult]:
    """As `search`, of what is checked.

    An upload is a quarter smaller than base64 in JSON, and spares both sides the coding; lists and
    batches have no upload.
    """
    path = f"{gallery_path(gallery)}/search"
    picture = queries.lone_picture(parsed)
    read = reader(SearchResult)
    if picture is not None:
        form = {name: _form_value(value) for name, value in fields.items()}
        return Call(method="POST", path=f"{path}/upload", read=read, form=form, file=picture)
    body = to_body({"query": queries.to_json(parsed), **fields})
    return Call(method="POST", path=path, read=read, body=body)


def search_fields(k: int, offset: int, options: SearchOptions) -> dict[str, Any]:
    """Options of a search as fields of a request; what is `None` is left out.

    Raises:
        TypeError: for an option that there is not.
    """
    if unknown := options.keys() - SearchOptions.__annotations__.keys():
        accepted = ", ".join(["k", "offset", *SearchOptions.__annotations__])
        raise TypeError(f"unknown option {min(unknown)!r}; accepted: {accepted}")
    fields: dict[str, Any] = {"k": k, "offset": offset}
    fields |= {name: value for name, value in options.items() if value is not None}
    include = fields.get("include", ())
    if isinstance(include, str):
        raise InputError(f"include is {include!r}; give a list: [{include!r}]")
    return fields | {"include": list(include)} if "include" in fields else fields


def item(gallery: str, item_id: str) -> Call[Item]:
    """`GET /v1/galleries/{g}/items/{id}`."""
    return Call(method="GET", path=item_path(gallery, item_id), read=reader(Item))


def thumbnail(gallery: str, item_id: str, *, size: int, time_s: float | None) -> Call[bytes]:
    """`GET /v1/galleries/{g}/items/{id}/thumbnail`."""
    params = {"size": str(size)}
    if time_s is not None:
        params["time_s"] = repr(float(time_s))
    path = f"{item_path(gallery, item_id)}/thumbnail"
    return Call(method="GET", path=path, params=params, read=_read_thumbnail)


def content(gallery: str, item_id: str, *, first: int, last: int | None) -> Call[Content]:
    """`GET /v1/galleries/{g}/items/{id}/content`, from byte `first` to `last`, both included."""
    if first < 0 or (last is not None and last < first):
        message = f"bytes {first} to {last} are no range; give 0 <= first <= last, or no last"
        raise InputError(message)
    headers = {"Accept-Encoding": "identity"}
    if first or last is not None:
        headers["Range"] = f"bytes={first}-{'' if last is None else last}"
    return Call(
        method="GET",
        path=f"{item_path(gallery, item_id)}/content",
        headers=headers,
        read=_read_content,
        accepts=frozenset({200, 206}),
    )


def models() -> Call[tuple[Model, ...]]:
    """`GET /v1/models`."""
    return Call(method="GET", path="/v1/models", read=_read_models)


def livez() -> Call[bool]:
    """`GET /livez`."""
    return Call(method="GET", path="/livez", read=lambda response: True, at_once=True)


def readyz() -> Call[Readiness]:
    """`GET /readyz`."""
    both = frozenset({200, 503})
    return Call(method="GET", path="/readyz", read=_read_readiness, accepts=both, at_once=True)


def explain(
    words: str,
    *,
    gallery: str | None,
    item_id: str | None,
    picture: str | Picture | None,
    options: Mapping[str, object],
) -> Call[dict[str, Any]]:
    """`POST /v1/explain`, of an item of a gallery or of a picture.

    Options are sent where they say something: are true, or a number.
    """
    if {gallery is None, item_id is None} != {picture is not None}:
        raise InputError("explain takes either gallery and item_id, or image")
    fields: dict[str, Any] = {"text": words}
    if picture is not None:
        fields |= queries.image(picture).to_json()
    else:
        fields |= {"gallery": gallery, "item_id": item_id}
    fields |= {name: value for name, value in options.items() if value not in (None, False, 0)}
    return Call(method="POST", path="/v1/explain", body=to_body(fields), read=_read_object)


def _form_value(value: object) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return value if isinstance(value, str) else to_json(value)


def _read_thumbnail(response: httpx.Response) -> bytes:
    kind = media_type(response)
    if kind != "image/jpeg":
        raise AnswerError(f"the thumbnail is {kind or 'of no type'}, not image/jpeg; {CURE}")
    return response.content


def _read_object(response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = read_json(response)
    return body


@dataclass(frozen=True)
class _Galleries:
    galleries: tuple[Gallery, ...]


@dataclass(frozen=True)
class _Models:
    data: tuple[Model, ...]


def _read_galleries(response: httpx.Response) -> tuple[Gallery, ...]:
    return build(_Galleries, read_json(response)).galleries


def _read_models(response: httpx.Response) -> tuple[Model, ...]:
    return build(_Models, read_json(response)).data


def _read_readiness(response: httpx.Response) -> Readiness:
    try:
        return build(Readiness, read_json(response))
    except AnswerError as err:
        if response.status_code != 200:  # a 503 of something in between
            raise api_error(response) from err
        raise


def _read_content(response: httpx.Response) -> Content:
    check_original(response)
    first, size_bytes = content_range(response) or (0, len(response.content))
    return Content(
        data=response.content,
        first=first,
        size_bytes=size_bytes,
        content_type=response.headers.get("content-type", "application/octet-stream"),
        etag=response.headers.get("etag"),
    )
