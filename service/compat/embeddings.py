"""OpenAI's embeddings: texts or pictures in, unit vectors out, and what the request used."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence

from cots_model.encoder import Encoder, Vectors
from cots_model.faults import json_kind
from service.compat.pictures import picture_query
from service.compat.schemas import (
    EmbeddingBody,
    EmbeddingsRequest,
    EmbeddingsResponse,
    ModelBody,
    ModelStats,
    Usage,
)
from service.embedding import embed_queries
from service.errors import ApiError, invalid
from service.queries import Part, Timing, combine, parse_query
from service.settings import Settings
from service.state import Service

UNSPECIFIED = "default/not-specified"
"""What infinity's client sends if it was told no model."""

_ACCEPTED = "a string or a list of strings"


async def embed(
    service: Service, body: EmbeddingsRequest, *, deadline_s: float
) -> EmbeddingsResponse:
    """The embeddings of a request; one bad input fails it.

    Raises:
        ApiError: 404 for another model, 422 naming the input at fault.
        QueueFullError, DeadlineError: see `WorkerPool.run`.
    """
    encoder = service.embedder.encoder
    check_model(body.model, encoder)
    _check_dimensions(body.dimensions, encoder)
    queries = _read_input(body, service.settings)
    num_tokens = await _count_tokens(service, queries, deadline_s)
    embedded = await embed_queries(
        service, queries, Timing(), gallery=None, deadline_s=deadline_s, whole=True
    )
    encode = _to_base64 if body.encoding_format == "base64" else _to_floats
    return EmbeddingsResponse(
        data=[
            EmbeddingBody(index=n, embedding=encode(combine(query)))
            for n, query in enumerate(embedded)
        ],
        model=encoder.name,
        usage=Usage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def check_model(name: str | None, encoder: Encoder) -> None:
    """Refuse the name of a model that is not served.

    Raises:
        ApiError: 404 naming the one that is.
    """
    if name in (None, UNSPECIFIED, encoder.name):
        return
    message = f"no model {str(name)[:100]!r}; this server has {encoder.name!r}"
    raise ApiError(404, "model_not_found", message, param="model")


def describe_model(service: Service) -> ModelBody:
    """The served model, as lists of models show it."""
    encoder, waiting = service.embedder.encoder, service.embedder.waiting
    return ModelBody(
        id=encoder.name,
        dimensions=encoder.dim,
        stats=ModelStats(
            queue_fraction=waiting / service.settings.queue_size,
            queue_absolute=waiting,
            batch_size=service.settings.encode_batch,
        ),
    )


def _check_dimensions(dimensions: int | None, encoder: Encoder) -> None:
    if dimensions in (None, 0, encoder.dim):  # infinity's client sends 0 if it was told none
        return
    message = (
        f"dimensions is {dimensions}; {encoder.name!r} gives {encoder.dim}, and was not trained "
        "to be cut; leave dimensions out"
    )
    raise invalid("invalid_value", message, param="dimensions")


def _read_input(body: EmbeddingsRequest, settings: Settings) -> list[tuple[Part, ...]]:
    """One query for each input."""
    given, most = body.input, settings.max_queries
    if isinstance(given, str):
        return [_read_one(given, "input", body, settings)]
    if not isinstance(given, list):
        message = f"input is {json_kind(given)}; accepted: {_ACCEPTED}"
        raise invalid("invalid_value", message, param="input")
    if given and all(isinstance(entry, int) for entry in given):
        raise _token_array("input")
    if not 1 <= len(given) <= most:
        message = f"input has {len(given)} entries; 1 to {most} are accepted"
        raise invalid("invalid_value", message, param="input")
    return [_read_one(entry, f"input.{n}", body, settings) for n, entry in enumerate(given)]


def _read_one(
    value: object, param: str, body: EmbeddingsRequest, settings: Settings
) -> tuple[Part, ...]:
    if isinstance(value, list):
        raise _token_array(param)
    if not isinstance(value, str):
        message = f"{param} is {json_kind(value)}; input takes {_ACCEPTED}"
        raise invalid("invalid_value", message, param=param)
    if body.modality == "image":
        return picture_query(value, param=param, settings=settings)
    return parse_query(value, param=param, settings=settings)


def _token_array(param: str) -> ApiError:
    message = (
        f"{param} is an array of tokens, which are numbers of another model's vocabulary; send "
        "the text itself (LangChain: check_embedding_ctx_length=False)"
    )
    return invalid("not_supported", message, param=param)


async def _count_tokens(
    service: Service, queries: Sequence[tuple[Part, ...]], deadline_s: float
) -> int:
    texts = [part.spec.text for parts in queries for part in parts if part.spec.text is not None]
    if not texts:
        return 0
    job = functools.partial(service.embedder.encoder.num_tokens, texts)
    return (await service.decoding.run(job, deadline_s=deadline_s)).value


def _to_base64(vector_E: Vectors) -> str:
    return base64.b64encode(vector_E.astype("<f4").tobytes()).decode("ascii")


def _to_floats(vector_E: Vectors) -> list[float]:
    floats: list[float] = vector_E.tolist()
    return floats
