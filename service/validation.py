"""Bodies against their schemas: the first fault, as a 422 that says what came and is accepted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cots_model.faults import describe_fault, describe_unknown, place_of
from service.errors import ApiError, invalid

_FORMS = ("image", "image_url", "item_id", "embedding")  # of a query

Model = TypeVar("Model", bound=BaseModel)

_ELSEWHERE = {
    **dict.fromkeys(("topk", "top", "n", "limit", "size", "count", "numresults"), "k"),
    **dict.fromkeys(("q", "text", "prompt", "search"), "query"),
    **dict.fromkeys(("skip", "from", "start"), "offset"),
    **dict.fromkeys(("threshold", "minscore", "scorethreshold", "certainty"), "min_score"),
    **dict.fromkeys(("where", "filters", "queryfilter"), "filter"),
    **dict.fromkeys(("fields", "outputfields", "withpayload", "attributes"), "include"),
    **dict.fromkeys(("dedup", "deduplication"), "deduplicate"),
    **dict.fromkeys(("url", "imageurl"), "image_url"),
    **dict.fromkeys(("image", "picture", "photo", "upload"), "file"),
    "id": "item_id",
}
"""What other services, and people, call fields of ours; letters and digits only."""


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
        if name in _FORMS and "query" in known:
            message = f'unknown field {name}; put it into query: {{"query": {{"{name}": …}}}}'
            raise invalid("unknown_field", message, param=name)
        if name not in known:
            message = describe_unknown(
                [name], known, prefix=prefix, noun="field", elsewhere=_ELSEWHERE
            )
            raise invalid("unknown_field", message, param=place_of([name], prefix=prefix))


def from_validation(err: ValidationError, model: type[BaseModel], prefix: str = "") -> ApiError:
    """The first fault of a pydantic error, as a 422; see `validated`."""
    fault = err.errors(include_url=False)[0]
    message = describe_fault(fault, model, prefix=prefix, noun="field")
    return invalid("invalid_value", message, param=place_of(fault["loc"], prefix=prefix) or None)
