"""From JSON to frozen dataclasses, by their annotations; what they do not know is passed over.

So a newer server may send more than this client knows, and a wrong one is told by the first field
that is missing or of another kind.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from cots_client.errors import AnswerError

T = TypeVar("T")

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def build(kind: type[T], value: object, where: str = "answer") -> T:
    """A dataclass from a JSON object.

    Args:
        kind: the dataclass; its fields may be `str`, `int`, `float`, `bool`, `Any`, mappings,
            other dataclasses, `tuple[X, ...]` and `X | None`.
        value: as parsed.
        where: of it in the answer, dotted, for messages.

    Raises:
        AnswerError: naming the field that is missing or of another kind.
    """
    if not isinstance(value, dict):
        raise unexpected(where, "an object", value)
    given: dict[str, Any] = {}
    for name, hint, required in _fields(kind):  # type: ignore[arg-type]  # a class can be hashed
        if name in value:
            given[name] = _convert(hint, value[name], f"{where}.{name}")
        elif required:
            raise AnswerError(f"{where} has no {name!r}; {CURE}")
    return kind(**given)


CURE = "is base_url a COTS Retrieval server, of a version that this client knows?"


def unexpected(where: str, wanted: str, value: object) -> AnswerError:
    """That something else was expected in a place of the answer."""
    return AnswerError(f"{where} is a {type(value).__name__}, not {wanted}; {CURE}")


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and whether it must be there, of each field."""
    hints = get_type_hints(kind)
    nothing = dataclasses.MISSING
    return tuple(
        (f.name, hints[f.name], f.default is nothing and f.default_factory is nothing)
        for f in dataclasses.fields(kind)
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        [inner] = [arg for arg in get_args(hint) if arg is not type(None)]
        return None if value is None else _convert(inner, value, where)
    if origin is tuple:
        return _convert_all(get_args(hint)[0], value, where)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]  # never an instance
    wanted = (int, float) if hint is float else dict if origin is Mapping else hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise unexpected(where, _NAMES.get(hint, "an object"), value)
    return _float(value, where) if hint is float else value


def _float(value: Any, where: str) -> float:
    try:
        return float(value)
    except OverflowError as err:
        raise unexpected(where, "a number that a float holds", value) from err


def _convert_all(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise unexpected(where, "a list", value)
    if hint is float and {*map(type, value)} <= {int, float}:  # embeddings are long
        return tuple(_float(number, where) for number in value)
    return tuple(_convert(hint, entry, f"{where}.{n}") for n, entry in enumerate(value))
