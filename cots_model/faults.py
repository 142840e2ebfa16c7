"""What is wrong with values from outside, in words for whoever wrote them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SHOWN = 60  # characters of a name or a value
_WANTED = {
    "dict_type": "an object",
    "model_type": "an object",
    "list_type": "a list",
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "finite_number": "a finite number",
}
"""What the commonest faults are about; others come with words of their own."""


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
    place = place_of(fault["loc"], prefix=prefix)
    if fault["type"] == "extra_forbidden":
        *parents, _ = map(str, fault["loc"])
        return describe_unknown(fault["loc"], _fields(model, parents), prefix=prefix, noun=noun)
    if fault["type"] == "missing":
        return f"{place} is missing"
    wanted = _WANTED.get(fault["type"])
    message = f"it must be {wanted}" if wanted else fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{place}: {message}" if place else message
    if fault["type"] in ("too_long", "too_short"):  # it says how long
        return f"{place or 'the whole'}: {message}"
    return f"{place or 'the whole'}: {message}, not {_shown(fault['input'])}"


def describe_unknown(
    loc: Sequence[int | str],
    known: Sequence[str],
    *,
    prefix: str = "",
    noun: str = "key",
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """For a name that nothing has: the nearest of those that are known there, or all of them.

    Args:
        loc: where it is; its last is the name.
        known: names that are accepted there.
        prefix: where in what the user wrote `loc` begins.
        noun: what users call a place in it.
        elsewhere: names that others have for some of the known ones.
    """
    *parents, name = loc
    same = elsewhere.get(plain(name))
    alike = {plain(one): one for one in known}
    near = [same] if same in known else [alike[plain(name)]] if plain(name) in alike else []
    near = near or difflib.get_close_matches(str(name)[:_SHOWN], known, n=1, cutoff=0.7)
    advice = f"; accepted here: {', '.join(known)}" if known else ""
    if near:
        advice = f"; did you mean {place_of([*parents, *near], prefix=prefix)}?"
    return f"unknown {noun} {place_of(loc, prefix=prefix)}{advice}"


def describe_cut(place: str, text: str, cut_at: int, model: str) -> str:
    """That a model reads a text up to the character `cut_at` only."""
    last = " ".join(text[max(0, cut_at - _SHOWN) : cut_at].split())
    if cut_at > _SHOWN:
        last = f"…{last}"
    return f"{place} is longer than {model} reads: what comes after {last!r} is left out"


def plain(name: int | str) -> str:
    """A name however it is written: `topK`, `top_k` and `top-k` are one, `topk`."""
    return "".join(filter(str.isalnum, str(name)[:_SHOWN])).lower()


def place_of(loc: Sequence[int | str], *, prefix: str = "") -> str:
    """Dotted, below `prefix`; empty for the whole. Names from outside are `shortened`."""
    return ".".join([*filter(None, [prefix]), *map(shortened, loc)])


def shortened(name: int | str) -> str:
    """A name from outside in one short line, whatever it is made of."""
    text = str(name)[: _SHOWN + 1]
    if not text or not text.isprintable() or text.isspace():
        text = repr(text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def json_kind(value: object) -> str:
    """The JSON type of a value, in words."""
    if value is None:
        return "null"
    for kinds, words in _KINDS:
        if isinstance(value, kinds):
            return words
    return type(value).__name__


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a boolean"),
    ((int, float), "a number"),
    (str, "a text"),
    (list, "a list"),
    (dict, "an object"),
)


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
    """A value in few words."""
    match value:
        case None | bool():
            return json.dumps(value)
        case str():
            return shortened(repr(value[:_SHOWN]))
        case list() | tuple() if value:
            return f"a list of {len(value):,}"
        case dict() if value:
            return json_kind(value)
    return shortened(repr(value))
