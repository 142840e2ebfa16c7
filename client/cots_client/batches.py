"""Many queries or inputs in as few requests as the server's limits allow, made one by one."""

from __future__ import annotations

import array
import base64
import binascii
import functools
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import httpx

from cots_client import queries
from cots_client.calls import SearchOptions, search_fields
from cots_client.errors import AnswerError, InputError, PictureError, QueryError
from cots_client.queries import Picture, Query
from cots_client.reading import CURE, build, unexpected
from cots_client.results import Embeddings, SearchResult
from cots_client.wire import Call, gallery_path, read_json, to_json

MOST = 256
"""Queries of one request that a server takes, unless it is set otherwise."""
MOST_BYTES = 16 * 1024 * 1024
"""Of one request, well below the server's 20 MiB; a larger query goes alone."""


class Searches:
    """`POST /v1/galleries/{g}/search` with `queries`, as often as needed.

    Args:
        gallery: to search.
        asked: queries, taken as the calls are.
        k: hits of each.
        offset: of the first hit of each.
        batch_size: most queries of one request.
        options: as of a search.

    Raises:
        InputError: also while the calls are taken, for what is no query.
    """

    def __init__(
        self,
        gallery: str,
        asked: Iterable[Query],
        *,
        k: int,
        offset: int,
        batch_size: int,
        options: SearchOptions,
    ) -> None:
        if queries.is_single(asked) or not isinstance(asked, Iterable):
            raise InputError(
                'search_many takes a list of queries, such as ["a dog", Path("a.jpg")]'
            )
        _check_size(batch_size)
        self._path = f"{gallery_path(gallery)}/search"
        self._fields = search_fields(k, offset, options)
        self._asked = asked
        self._batch_size = batch_size
        self._unsent: list[QueryError] = []

    def calls(self) -> Iterator[Call[list[SearchResult | QueryError]]]:
        """The requests, each with the results of what it asks."""
        for numbers, batch in _batches(self._entries(), self._batch_size):
            yield Call(
                method="POST",
                path=self._path,
                body=_joined("queries", batch, self._fields),
                read=functools.partial(_read_results, numbers=numbers),
                renumber=functools.partial(_renumbered, "queries", numbers),
            )

    def joined(
        self, answers: Iterable[list[SearchResult | QueryError]]
    ) -> list[SearchResult | QueryError]:
        """What all requests gave, with the errors of queries that were not sent in their places."""
        results = [result for answer in answers for result in answer]
        for error in self._unsent:  # by index
            results.insert(error.index, error)
        return results

    def _entries(self) -> Iterator[tuple[int, str]]:
        """Number of a query in what was given, and its JSON."""
        for number, query in enumerate(self._asked):
            try:
                parsed = queries.parse(query, f"queries[{number}]")
            except PictureError as err:
                self._unsent.append(_unsent(number, err))
            else:
                yield number, to_json(queries.to_json(parsed))


def _unsent(number: int, err: PictureError) -> QueryError:
    return QueryError(
        number, "input_error", "picture_unreadable", f"queries.{number}.image", str(err)
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
        InputError: also while the calls are taken, if a picture cannot be read or the kinds differ.
    """
    _check_size(batch_size)
    parts = _parts(inputs)
    first = next(parts, None)
    if first is None:
        raise InputError("inputs are empty; give texts, or pictures, at least one")
    fields = {
        "modality": "image" if first.form == "image" else "text",
        "encoding_format": "base64",
        **({} if model is None else {"model": model}),
        **({} if dimensions is None else {"dimensions": dimensions}),
    }
    entries = (to_json(part.to_json()[part.form]) for part in itertools.chain([first], parts))
    return (
        Call(
            method="POST",
            path="/v1/embeddings",
            body=_joined("input", batch, fields),
            read=functools.partial(_read_embeddings, num_inputs=len(batch)),
            renumber=functools.partial(_renumbered, "input", numbers),
        )
        for numbers, batch in _batches(enumerate(entries), batch_size)
    )


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")


def _parts(inputs: str | Picture | Iterable[str | Picture]) -> Iterator[queries.Part]:
    """Texts or pictures, all of the kind of the first, each read when it is taken."""
    alone = queries.is_single(inputs) or not isinstance(inputs, Iterable)
    form = None
    for number, value in enumerate(cast("Iterable[object]", [inputs] if alone else inputs)):
        part = queries.as_part(value, f"inputs[{number}]")
        form = form or part.form
        if part.form != form or form not in ("text", "image"):
            kinds = " and ".join(sorted({form, part.form}))
            message = (
                f"inputs are {kinds} at inputs[{number}]; give texts, or pictures, in one call"
            )
            raise InputError(message)
        if part.weight != 1:
            message = f"inputs[{number}] has weight {part.weight}; vectors have none: leave it out"
            raise InputError(message)
        yield part


def _batches(
    entries: Iterable[tuple[int, str]], most: int
) -> Iterator[tuple[list[int], list[str]]]:
    """The entries of each request, and their numbers in what was given."""
    numbers, batch, num_bytes = list[int](), list[str](), 0
    for number, entry in entries:
        size = len(entry.encode("utf-8"))
        if batch and (len(batch) == most or num_bytes + size > MOST_BYTES):
            yield numbers, batch
            numbers, batch, num_bytes = [], [], 0
        numbers.append(number)
        batch.append(entry)
        num_bytes += size
    if batch:
        yield numbers, batch


def _renumbered(
    name: str, numbers: Sequence[int], param: str | None, message: str
) -> tuple[str | None, str]:
    """From the place in the request that `param` names to that in what was given."""
    named = re.match(rf"{name}\.(\d{{1,9}})\b", param or "")
    if param is None or named is None or int(named[1]) >= len(numbers):
        return param, message
    place, given = int(named[1]), numbers[int(named[1])]
    return _moved(name, place, given, param), _moved(name, place, given, message)


def _moved(name: str, place: int, given: int, text: str) -> str:
    """The first place that a text names; what it quotes comes later, and stays as it is."""
    return re.sub(rf"\b{name}\.{place}\b", f"{name}.{given}", text, count=1)


def _joined(name: str, entries: Sequence[str], fields: dict[str, Any]) -> bytes:
    """A JSON object of entries that are JSON already, and further fields, of which there is one."""
    return f'{{"{name}":[{",".join(entries)}],{to_json(fields)[1:]}'.encode()


def _read_results(
    response: httpx.Response, *, numbers: Sequence[int]
) -> list[SearchResult | QueryError]:
    body = read_json(response)
    results = body.get("results") if isinstance(body, dict) else None
    if not isinstance(results, list) or len(results) != len(numbers):
        raise unexpected("answer.results", f"a list of {len(numbers)}", results)
    given = enumerate(zip(results, numbers, strict=True))
    return [_read_result(body, result, place, number) for place, (result, number) in given]


def _read_result(
    body: dict[str, Any], result: Any, place: int, number: int
) -> SearchResult | QueryError:
    moved = functools.partial(_moved, "queries", place, number)
    if not isinstance(result, dict) or "error" not in result:
        found = build(SearchResult, {**body, **(result if isinstance(result, dict) else {})})
        return replace(
            found,
            warnings=tuple(
                replace(one, param=moved(one.param), message=moved(one.message))
                for one in found.warnings
            ),
        )
    error = build(_Error, result["error"], f"answer.results.{place}.error")
    param = None if error.param is None else moved(error.param)
    return QueryError(number, error.type, error.code, param, moved(error.message))


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
    vectors = tuple(_vector(vector.embedding) for vector in found)
    if len({*map(len, vectors)}) > 1:
        raise AnswerError(f"answer.data are vectors of several lengths; {CURE}")
    return Embeddings(
        vectors=vectors,
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
