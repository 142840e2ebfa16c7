"""What is wrong with values from outside, in words for whoever wrote them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SHOWN = 60  # characters of a value


def describe_faults(error: ValidationError, model: type[BaseModel]) -> str:
    """One clause for each bad key: its place, what came, what is accepted."""
    return "; ".join(_clause(fault, model) for fault in error.errors())


def _clause(fault: ErrorDetails, model: type[BaseModel]) -> str:
    place = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return _unknown(fault["loc"], model)
    if fault["type"] == "missing":
        return f"{place} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place or 'the whole'}: {message}, not {_shown(fault['input'])}"


def _unknown(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """Of a key that nothing has; the nearest one, or all that there are."""
    *parents, key = map(str, loc)
    prefix = "".join(f"{parent}." for parent in parents)
    known = _fields(model, parents)
    if not known:
        return f"unknown key {prefix}{key}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if near:
        return f"unknown key {prefix}{key}; did you mean {prefix}{near[0]}?"
    return f"unknown key {prefix}{key}; accepted here: {', '.join(known)}"


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
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
