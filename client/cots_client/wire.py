"""What a request is, and how paths, JSON and answers look on the wire."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx

from cots_client.errors import AnswerError, InputError, Renumber, as_told, parse_json
from cots_client.reading import CURE, build

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request and what its answer means.

    Attributes:
        method: of HTTP.
        path: below the base url, percent-encoded.
        read: the result from an accepted answer; raises AnswerError.
        params: of the query string.
        headers: beside those of the client.
        body: JSON.
        form: fields beside `file`.
        file: a picture that is uploaded.
        accepts: statuses of answers that are results.
        may_repeat: whether it may be sent again though the server may have done it already.
        at_once: whether it is sent once, and its answer whole within the time or none.
        timeout_s: instead of the client's.
        renumber: what an error tells, from places in this request to those in what was given.
    """

    method: Literal["GET", "POST"]
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    form: Mapping[str, str] = field(default_factory=dict, repr=False)
    file: bytes | None = field(default=None, repr=False)
    accepts: frozenset[int] = frozenset({200})
    may_repeat: bool = True
    at_once: bool = False
    timeout_s: float | None = None
    renumber: Renumber = as_told


def gallery_path(name: str) -> str:
    """Path of a gallery.

    Raises:
        InputError: for a name that none can have.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"gallery is {name!r}; give its name; galleries() lists those there are")
    return f"/v1/galleries/{_segment(name)}"


def item_path(gallery: str, item_id: str) -> str:
    """Path of an item.

    A `/` of its id stays, as proxies like it, unless the path would then mean something else.
    """
    if not isinstance(item_id, str):
        raise InputError(f"item_id is a {type(item_id).__name__}; give a str")
    segments = item_id.split("/")
    plain = not {"", ".", ".."}.intersection(segments)
    plain = plain and segments[-1] not in ("thumbnail", "content")
    encoded = "/".join(map(_segment, segments)) if plain else _segment(item_id)
    return f"{gallery_path(gallery)}/items/{encoded}"


def _segment(name: str) -> str:
    """One segment of a path; `.` and `..` are spelled so that nothing resolves them."""
    if name in (".", ".."):
        return name.replace(".", "%2E")
    try:
        return quote(name, safe="", errors="strict")
    except UnicodeEncodeError as err:
        message = f"{name!r} has a surrogate, which no address carries; give what a hit's id says"
        raise InputError(message) from err


def to_body(value: object) -> bytes:
    """JSON, in UTF-8.

    Raises:
        InputError: for what JSON does not have, such as NaN.
    """
    return to_json(value).encode("utf-8")


def to_json(value: object) -> str:
    """As `to_body`, not yet encoded."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as err:
        message = f"the request cannot be written as JSON ({err}); give texts, finite numbers, "
        raise InputError(f"{message}true or false, lists and dicts of these") from err
    return text


def read_json(response: httpx.Response) -> Any:
    """The parsed body.

    Raises:
        AnswerError: if it is no JSON.
    """
    try:
        return parse_json(response)
    except ValueError as err:
        kind = response.headers.get("content-type", "nothing in particular")
        raise AnswerError(f"the answer is no JSON but {kind}; {CURE}") from err


def reader(kind: type[T]) -> Callable[[httpx.Response], T]:
    """What reads an answer as a dataclass; raises AnswerError."""
    return functools.partial(_read_as, kind)


def _read_as(kind: type[T], response: httpx.Response) -> T:
    return build(kind, read_json(response))


def media_type(response: httpx.Response) -> str:
    """What the body is, without parameters; empty if that is not told."""
    kind: str = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def check_original(response: httpx.Response) -> None:
    """That an answer may be an original: the service sends none as a page.

    Raises:
        AnswerError: for a page, such as one to log in.
    """
    if media_type(response) == "text/html":
        raise AnswerError(f"the answer is a page of HTML, not an original; {CURE}")


def content_range(response: httpx.Response) -> tuple[int, int] | None:
    """First byte, and size of the whole, of a 206; `None` for a whole.

    Raises:
        AnswerError: if a 206 does not say so.
    """
    if response.status_code != 206:
        return None
    given = response.headers.get("content-range", "")
    try:
        unit, _, rest = given.partition(" ")
        place, _, size = rest.partition("/")
        if unit != "bytes":
            raise ValueError(unit)
        return int(place.partition("-")[0]), int(size)
    except ValueError as err:
        raise AnswerError(f"Content-Range is {given!r}, not 'bytes FIRST-LAST/SIZE'") from err
