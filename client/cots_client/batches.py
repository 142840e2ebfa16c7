"""Many queries or inputs in as few requests as the server's limits allow, made one by one."""

from __future__ import annotations

import array
import base64
import binascii
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httpx

from cots_client import queries
from cots_client.calls import SearchOptions, search_fields
from cots_client.errors import AnswerError, InputError, QueryError
from cots_client.queries import Picture, Query
from cots_client.reading import CURE, build, unexpected
from cots_client.results import Embeddings, SearchResult
from cots_client.wire import Call, gallery_path, read_json, to_json

MOST = 256
"""Queries of one request that a server takes, unless it is set otherwise."""
MOST_BYTES = 16 * 1024 * 1024
"""Of one request, well below the server's 20 MiB; a larger query goes alone."""


def search_many(
    gallery: str,
    asked: Iterable[Query],
    *,
    k: int,
    offset: int,
    batch_size: int,
    options: SearchOptions,
) -> Iterator[Call[list[SearchResult | QueryError]]]:
    """`POST /v1/galleries/{g}/search` with `queries`, as often as needed.

    Raises:
        InputError: also while the calls are taken, if a picture cannot be read.
    """
    if isinstance(asked, str | bytes | queries.Part) or hasattr(asked, "read"):
        raise InputError('search_many takes a list of queries, such as ["a dog", image("a.jpg")]')
    _check_size(batch_size)
    path = f"{gallery_path(gallery)}/search"
    fields = search_fields(k, offset, options)
    parsed = (queries.parse(query, f"queries[{n}]") for n, query in enumerate(asked))
    entries = (to_json(queries.to_json(query)) for query in parsed)
    return (
        Call(
            method="POST",
            path=path,
            body=_joined("queries", batch, fields),
            read=functools.partial(_read_results, first=first, num_queries=len(batch)),
        )
        for first, batch in _batches(entries, batch_size)
    )


def embed(
    inputs: str | Picture | Iterable[str | Picture],
    *,
    model: str | None,
    dimensions: int | None,
    batch_size: int,
) -> Iterator[Call[Embeddings]]:
    """`POST /v1/embeddings`, as often as needed; vectors travel as base64, a third of their digits.

    Raises:
        InputError: also while the calls are taken, if a picture cannot be read.
    """
    _check_size(batch_size)
    parts = _parts(inputs)
    fields = {
        "modality": "image" if parts[0].form == "image" else "text",
        "encoding_format": "base64",
        **({} if model is None else {"model": model}),
        **({} if dimensions is None else {"dimensions": dimensions}),
    }
    entries = (to_json(part.to_json()[part.form]) for part in parts)
    return (
        Call(
            method="POST",
            path="/v1/embeddings",
            body=_joined("input", batch, fields),
            read=functools.partial(_read_embeddings, num_inputs=len(batch)),
        )
        for _, batch in _batches(entries, batch_size)
    )


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")


def _parts(inputs: str | Picture | Iterable[str | Picture]) -> list[queries.Part]:
    """Texts or pictures, of one kind."""
    single = isinstance(inputs, str | bytes | queries.Part) or not isinstance(inputs, Iterable)
    alone = single or hasattr(inputs, "read")
    many = cast("Iterable[object]", [inputs] if alone else inputs)
    parts = [queries.as_part(value, f"inputs[{n}]") for n, value in enumerate(many)]
    forms = {part.form for part in parts}
    if forms not in ({"text"}, {"image"}):
        kinds = " and ".join(sorted(forms)) or "empty"
        raise InputError(f"inputs are {kinds}; give texts, or pictures, at least one, in one call")
    return parts


def _batches(entries: Iterable[str], most: int) -> Iterator[tuple[int, list[str]]]:
    """Position of the first, and the entries, of each request."""
    first, batch, num_bytes = 0, list[str](), 0
    for entry in entries:
        size = len(entry.encode("utf-8"))
        if batch and (len(batch) == most or num_bytes + size > MOST_BYTES):
            yield first, batch
            first, batch, num_bytes = first + len(batch), [], 0
        batch.append(entry)
        num_bytes += size
    if batch:
        yield first, batch


def _joined(name: str, entries: Sequence[str], fields: dict[str, Any]) -> bytes:
    """A JSON object of entries that are JSON already, and further fields, of which there is one."""
    return f'{{"{name}":[{",".join(entries)}],{to_json(fields)[1:]}'.encode()


def _read_results(
    response: httpx.Response, *, first: int, num_queries: int
) -> list[SearchResult | QueryError]:
    body = read_json(response)
    results = body.get("results") if isinstance(body, dict) else None
    if not isinstance(results, list) or len(results) != num_queries:
        raise unexpected("answer.results", f"a list of {num_queries}", results)
    return [_read_result(body, result, n, first) for n, result in enumerate(results)]


def _read_result(
    body: dict[str, Any], result: Any, number: int, first: int
) -> SearchResult | QueryError:
    if not isinstance(result, dict) or "error" not in result:
        return build(SearchResult, {**body, **(result if isinstance(result, dict) else {})})
    error = build(_Error, result["error"], f"answer.results.{number}.error")

    def renumbered(text: str) -> str:  # from its place in the request to that in what was given
        return re.sub(rf"\bqueries\.{number}\b", f"queries.{first + number}", text)

    param = None if error.param is None else renumbered(error.param)
    return QueryError(first + number, error.type, error.code, param, renumbered(error.message))


@dataclass(frozen=True)
class _Error:
    type: str
    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True)
class _Vector:
    index: int
    embedding: Any


@dataclass(frozen=True)
class _Usage:
    total_tokens: int = 0


@dataclass(frozen=True)
class _Vectors:
    data: tuple[_Vector, ...]
    model: str
    usage: _Usage = _Usage()


def _read_embeddings(response: httpx.Response, *, num_inputs: int) -> Embeddings:
    body = build(_Vectors, read_json(response))
    found = sorted(body.data, key=lambda vector: vector.index)
    if [vector.index for vector in found] != list(range(num_inputs)):
        raise AnswerError(f"answer.data are not the vectors of {num_inputs} inputs; {CURE}")
    return Embeddings(
        vectors=tuple(_vector(vector.embedding) for vector in found),
        model=body.model,
        num_tokens=body.usage.total_tokens,
    )


def _vector(value: object) -> tuple[float, ...]:
    """From base64 of little-endian float32."""
    numbers = array.array("f")
    try:
        numbers.frombytes(base64.b64decode(value, validate=True))  # type: ignore[arg-type]
    except (TypeError, ValueError, binascii.Error) as err:
        raise unexpected("answer.data.embedding", "base64 of float32", value) from err
    if sys.byteorder == "big":
        numbers.byteswap()
    return tuple(numbers)
