"""Bodies against their schemas: the first fault, as a 422 that says what came and is accepted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cots_model.faults import describe_fault, describe_unknown, place_of, plain
from service.errors import ApiError, invalid

Model = TypeVar("Model", bound=BaseModel)

_ELSEWHERE = {
    **dict.fromkeys(("topk", "top", "n", "limit", "size", "count", "numresults"), "k"),
    **dict.fromkeys(("q", "text", "prompt", "search"), "query"),
    **dict.fromkeys(("skip", "from", "start"), "offset"),
    **dict.fromkeys(("threshold", "minscore", "scorethreshold", "certainty"), "min_score"),
    **dict.fromkeys(("where", "filters", "queryfilter"), "filter"),
    **dict.fromkeys(("fields", "outputfields", "withpayload", "attributes"), "include"),
    **dict.fromkeys(("dedup", "deduplication"), "deduplicate"),
    **dict.fromkeys(("image", "picture", "photo", "upload"), "file"),
}
"""What other services, and people, call fields of ours; letters and digits only."""

_OF_A_QUERY = {
    **dict.fromkeys(("image", "picture", "photo", "imagebase64", "base64"), "image"),
    **dict.fromkeys(("url", "imageurl", "uri"), "image_url"),
    **dict.fromkeys(("id", "itemid", "like", "similarto"), "item_id"),
    **dict.fromkeys(("embedding", "vector", "queryvector"), "embedding"),
}
"""Likewise fields of a query, but for its text."""

_OF_A_FORM = {**_OF_A_QUERY, **dict.fromkeys(("q", "query", "prompt", "words", "caption"), "text")}


def validated(raw: dict[str, Any], model: type[Model], *, prefix: str = "") -> Model:
    """What was asked for.

    Args:
        raw: as it came, in the types of JSON.
        model: what it must be.
        prefix: where in the body it is.

    Raises:
        ApiError: 422 that names the first fault, unknown fields before all others.
    """
    if model.model_config.get("extra") == "forbid":
        refuse_unknown(raw, [*model.model_fields], prefix=prefix)
    try:
        return model.model_validate(raw, strict=True)
    except ValidationError as err:
        raise from_validation(err, model, prefix) from err


def refuse_unknown(names: Iterable[str], known: Sequence[str], *, prefix: str = "") -> None:
    """Refuse the first name that is not known.

    Raises:
        ApiError: 422 `unknown_field`.
    """
    for name in names:
        if name in known:
            continue
        place = place_of([name], prefix=prefix)
        message = f"unknown field {place}"
        if (form := _OF_A_QUERY.get(plain(name))) and "query" in known:
            message = f'{message}; put it into query: {{"query": {{"{form}": …}}}}'
        else:
            elsewhere = _OF_A_FORM if "text" in known else _ELSEWHERE
            message = describe_unknown(
                [name], known, prefix=prefix, noun="field", elsewhere=elsewhere
            )
        raise invalid("unknown_field", message, param=place)


def from_validation(err: ValidationError, model: type[BaseModel], prefix: str = "") -> ApiError:
    """The first fault of a pydantic error, as a 422; see `validated`."""
    fault = err.errors(include_url=False)[0]
    message = describe_fault(fault, model, prefix=prefix, noun="field")
    return invalid("invalid_value", message, param=place_of(fault["loc"], prefix=prefix) or None)
