"""Reading request bodies: strict JSON, and multipart uploads."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import pydantic_core
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from cots_model.faults import json_kind, shortened
from service.errors import ApiError, invalid
from service.schemas import MOST_INCLUDED, SearchOptions, SearchRequest
from service.validation import from_validation, refuse_unknown, validated

Body = TypeVar("Body", bound=BaseModel)

_FORM_FIELDS = ("file", *SearchOptions.model_fields)
_MOST_FILES = 16  # one is accepted; so many are read to say so


def _require_content_type(request: Request, accepted: str, hint: str) -> None:
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind == accepted or (accepted == "application/json" and kind.endswith("+json")):
        return
    message = f"Content-Type is {given[:100]!r}; accepted here: {accepted}; {hint}"
    raise ApiError(415, "unsupported_content_type", message)


async def read_search_request(request: Request) -> SearchRequest:
    """The checked JSON body of a search; raises as `read_json`."""
    return await read_json(request, SearchRequest, example='{"query": "a dog"}')


async def read_json(
    request: Request, kind: type[Body], *, example: str, any_type: bool = False
) -> Body:
    """The checked JSON body of a request.

    Args:
        request: whose body.
        kind: what it must be.
        example: of an accepted body, for messages.
        any_type: whether it is read whatever its Content-Type says, for clients that send none.

    Raises:
        ApiError: 415 for another content type, 400 if it is not JSON, 422 for bad fields.
    """
    if not any_type:
        _require_content_type(request, "application/json", f"send {example}")
    body = _parse_object(await request.body(), example)
    return validated(body, kind)


async def refuse_body(request: Request) -> None:
    """A dependency of routes that take no body; an empty object is as good as none.

    Raises:
        ApiError: 422 for anything else.
    """
    raw = await request.body()
    if raw.translate(None, b" \t\r\n") in (b"", b"{}"):
        return
    message = "this route takes no body; send none"
    raise invalid("invalid_body", f"{message}, not {len(raw):,} bytes")


def _parse_object(raw: bytes, example: str) -> dict[str, Any]:
    try:
        body = pydantic_core.from_json(raw)  # NaN is refused where it stands
    except ValueError as err:
        message = f"the body is not JSON ({err}); send something like {example}"
        raise ApiError(400, "invalid_json", message) from err
    if not isinstance(body, dict):
        message = f"the body is {json_kind(body)}; send an object: {example}"
        raise invalid("invalid_body", message)
    return body


async def read_upload(request: Request) -> tuple[bytes, SearchOptions]:
    """The uploaded picture and the options of a multipart search.

    Raises:
        ApiError: 415 for another content type, 422 for missing, repeated or bad fields.
    """
    _require_content_type(request, "multipart/form-data", "send the picture as the field file")
    try:
        async with request.form(max_files=_MOST_FILES, max_fields=32) as form:
            return await _read_file(form), _read_options(form)
    except HTTPException as err:  # from the parser
        if err.detail.startswith("Too many files"):
            message = f"the form has more than {_MOST_FILES} files; send one picture, as file"
            raise invalid("repeated_field", message, param="file") from err
        raise


async def _read_file(form: FormData) -> bytes:
    found = form.getlist("file")
    if len(found) > 1:
        message = f"file was sent {len(found)} times; send one picture"
        raise invalid("repeated_field", message, param="file")
    if found and isinstance(found[0], UploadFile):
        return await found[0].read()
    refuse_unknown(form, _FORM_FIELDS)  # maybe it goes by another name
    what = f"file is a text ({shortened(repr(found[0]))})" if found else "the form has no file"
    message = f"{what}; send the picture itself as the field file (curl -F file=@PICTURE)"
    raise invalid("file_missing", message, param="file")


def _read_options(form: FormData) -> SearchOptions:
    times = len(form.getlist("include"))
    if times > MOST_INCLUDED:
        message = f"include was sent {times} times; send it {MOST_INCLUDED} times at most"
        raise invalid("invalid_value", message, param="include")
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name == "file":
            continue
        refuse_unknown([name], _FORM_FIELDS)
        if not isinstance(value, str):
            raise invalid("invalid_value", f"{name} is a file; send a value", param=name)
        if name == "include":
            names = [part.strip() for part in value.split(",")] if value.strip() else []
            values[name] = [*values.get(name, []), *names]
        elif name in values:
            raise invalid("repeated_field", f"{name} was sent twice; send it once", param=name)
        else:
            values[name] = _read_filter(value) if name == "filter" else value
    try:
        return SearchOptions.model_validate(values)
    except ValidationError as err:
        raise from_validation(err, SearchOptions) from err


def _read_filter(value: str) -> Any:
    try:
        return pydantic_core.from_json(value)
    except ValueError as err:
        message = f"filter is not JSON ({err}); for example {json.dumps({'year': {'gte': 2020}})}"
        raise invalid("invalid_json", message, param="filter") from err
