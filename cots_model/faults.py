"""What is wrong with values from outside, in words for whoever wrote them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SHOWN = 60  # characters of a name or a value


def describe_faults(error: ValidationError, model: type[BaseModel]) -> str:
    """One clause for each bad key: its place, what came, what is accepted."""
    return "; ".join(describe_fault(fault, model) for fault in error.errors())


def describe_fault(
    fault: ErrorDetails, model: type[BaseModel], *, prefix: str = "", noun: str = "key"
) -> str:
    """One clause.

    Args:
        fault: of `ValidationError.errors()`.
        model: that was asked for.
        prefix: where in what the user wrote that model is.
        noun: what users call a place in it.
    """
    place = place_of(fault, prefix=prefix)
    if fault["type"] == "extra_forbidden":
        return f"unknown {noun} {place}{_advice(fault['loc'], model, prefix)}"
    if fault["type"] == "missing":
        return f"{place} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place or 'the whole'}: {message}, not {_shown(fault['input'])}"


def place_of(fault: ErrorDetails, *, prefix: str = "") -> str:
    """Dotted, below `prefix`; empty for the whole. Names that came are cut if they are long."""
    return ".".join([*filter(None, [prefix]), *map(shortened, fault["loc"])])


def shortened(name: int | str) -> str:
    """A name from outside, which may be as long as it likes."""
    text = str(name)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _advice(loc: Sequence[int | str], model: type[BaseModel], prefix: str) -> str:
    """For a key that nothing has: the nearest one, or all that there are."""
    *parents, key = map(str, loc)
    known = _fields(model, parents)
    near = difflib.get_close_matches(key[:_SHOWN], known, n=1, cutoff=0.7)
    if near:
        return f"; did you mean {'.'.join([*filter(None, [prefix]), *parents, *near])}?"
    return f"; accepted here: {', '.join(known)}" if known else ""


def _fields(model: type[BaseModel], parents: Sequence[str]) -> list[str]:
    """Keys of the configuration below `parents`; none where that is no configuration."""
    found: list[type[BaseModel]] = [model]
    for parent in parents:
        if parent.isdigit() or any(parent == kind.__name__ for kind in found):
            continue  # a place in a list, or which kind of several was tried
        below = [kind.model_fields[parent] for kind in found if parent in kind.model_fields]
        found = [kind for field in below for kind in _models(field.annotation)]
    return [name for kind in found for name in kind.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _models(part)]


def _shown(value: object) -> str:
    """As JSON and YAML write it, or how much it is."""
    match value:
        case None | bool():
            return json.dumps(value)
        case str() if len(value) > _SHOWN:
            return f"{value[: _SHOWN - 1]!r}…"
        case list() | tuple() if value:
            return f"a list of {len(value):,}"
        case dict() if value:
            return "an object"
        case int() if value.bit_length() > _SHOWN:
            return "a number of many digits"
    return shortened(repr(value))
