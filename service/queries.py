"""From the `query` of a request to one unit vector: checking, decoding, encoding, combining."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from pydantic import JsonValue
from torch import Tensor

from cots_model.encoder import Vectors
from cots_model.errors import CotsError
from cots_model.faults import json_kind
from cots_model.images import decode_image
from cots_model.preprocess import PicturePreprocess
from index_builder.gallery import Gallery, ItemNotFoundError
from service.encoding import Embedder, Pixels, Texts
from service.errors import ApiError, invalid, to_api_error
from service.fetch.fetcher import no_image_urls
from service.jobs import DeadlineError, Done
from service.schemas import QueryPart, SearchOptions
from service.settings import Settings
from service.validation import validated

_FORMS = (
    'a string, {"text"}, {"image"}, {"image_url"}, {"item_id"}, {"embedding"}, or a list of these'
)
_SHORTEST = 1e-6


@dataclass(frozen=True)
class Part:
    """A checked query part: what to embed, and its weight.

    `file` is the picture itself, where it was uploaded or fetched.
    `flat`: the field holds the form's value itself, as other protocols have it.
    `query`: the place of the query, where this is one of several parts of it.
    """

    spec: QueryPart
    param: str
    file: bytes | None = None
    flat: bool = False
    query: str | None = None

    @property
    def is_picture(self) -> bool:
        """Whether it has to be decoded, maybe fetched before."""
        forms = (self.file, self.spec.image, self.spec.image_url)
        return any(form is not None for form in forms)

    @property
    def form(self) -> str:
        """Where the request has what is to be embedded, dotted."""
        forms = self.spec.forms()
        return self.field(forms[0]) if forms else self.param

    def field(self, form: str) -> str:
        """Where the request has a form of this part, dotted."""
        return self.param if self.flat else f"{self.param}.{form}"


@dataclass
class Timing:
    """Milliseconds spent for one request."""

    queue_ms: float = 0.0
    encode_ms: float = 0.0
    search_ms: float = 0.0

    def encoded(self, done: Done[object]) -> None:
        """Add a finished decoding or encoding job."""
        self.queue_ms += done.queue_ms
        self.encode_ms += done.work_ms


@dataclass
class Embedded:
    """One query on its way to a vector; `error` ends the way.

    `cut_at`: by the number of a part, the character from which on its text was not read.
    """

    parts: tuple[Part, ...]
    vectors: list[Vectors | Tensor | str] = field(default_factory=list)
    cut_at: dict[int, int] = field(default_factory=dict)
    error: ApiError | None = None


def parse_query(value: JsonValue, *, param: str, settings: Settings) -> tuple[Part, ...]:
    """Check the shape of one query.

    Raises:
        ApiError: 422 naming the field at fault.
    """
    if value is None:
        raise invalid("query_missing", f"{param} is missing; give {_FORMS}", param=param)
    if not isinstance(value, list):
        return (_parse_part(value, param, settings),)
    most = settings.max_query_parts
    if not 1 <= len(value) <= most:
        message = f"{param} has {len(value)} parts; 1 to {most} are accepted"
        raise invalid("query_parts", message, param=param)
    return tuple(
        replace(_parse_part(v, f"{param}.{n}", settings), query=param) for n, v in enumerate(value)
    )


def _parse_part(value: JsonValue, param: str, settings: Settings) -> Part:
    raw = {"text": value} if isinstance(value, str) else value
    if not isinstance(raw, dict):
        message = f"{param} is {json_kind(value)}; accepted: {_FORMS}"
        raise invalid("query_form", message, param=param)
    for name in SearchOptions.model_fields:
        if name in raw:
            beside = param.partition(".")[0]  # query, or queries
            message = f"{param} has {name}, which is of the whole search; put it beside {beside}"
            raise invalid("unknown_field", message, param=f"{param}.{name}")
    part = validated(raw, QueryPart, prefix=param)
    if len(part.forms()) != 1:
        given = " and ".join(part.forms()) or "none"
        message = f"{param} has {given} of the forms; give exactly one: {_FORMS}"
        raise invalid("query_form", message, param=param)
    if part.image_url is not None and not settings.image_urls:
        raise no_image_urls(f"{param}.image_url")
    if part.text is not None:
        check_text(part.text, param, settings.max_text_bytes)
    return Part(part, param)


def check_text(text: str, param: str, most: int) -> None:
    """Refuse a text of no words, or of more than `most` bytes.

    Raises:
        ApiError: 422 naming `param`.
    """
    if not text.strip():
        raise invalid("text_empty", f"{param} is empty; give some words", param=param)
    size = len(text.encode("utf-8"))
    if size > most:
        message = f"{param} has {size:,} bytes; at most {most:,} are accepted; shorten it"
        raise invalid("text_too_long", message, param=param)


def prepare(
    queries: Sequence[tuple[Part, ...]],
    gallery: Gallery | None,
    preprocess: PicturePreprocess,
    max_pixels: int,
    deadline_s: float,
) -> list[Embedded]:
    """Do all that needs no model: decode pictures, look up items, check embeddings.

    Args:
        queries: of one request.
        gallery: that items are of; without it there may be texts and pictures only.
        preprocess: of the model.
        max_pixels: largest width x height of a picture.
        deadline_s: on the clock of `time.monotonic`; looked at before every part.

    Raises:
        DeadlineError: if it passes: nobody waits for the rest.
    """
    prepared = []
    for parts in queries:
        query = Embedded(parts)
        for part in parts:
            if time.monotonic() > deadline_s:
                raise DeadlineError("decode: not finished before the deadline")
            try:
                query.vectors.append(_prepare_part(part, gallery, preprocess, max_pixels))
            except CotsError as err:
                query.error = to_api_error(err, param=part.form)
                break
        prepared.append(query)
    return prepared


def _prepare_part(
    part: Part, gallery: Gallery | None, preprocess: PicturePreprocess, max_pixels: int
) -> Vectors | Tensor | str:
    spec = part.spec
    if part.file is not None:
        return preprocess.image(decode_image(part.file, max_pixels=max_pixels))
    if spec.text is not None:
        return spec.text
    if spec.image is not None:
        data = decode_base64(spec.image, param=part.field("image"))
        return preprocess.image(decode_image(data, max_pixels=max_pixels))
    assert gallery is not None, "items and embeddings are of a gallery"
    if spec.item_id is not None:
        try:
            return gallery.vector(gallery.row(spec.item_id))
        except ItemNotFoundError as err:
            raise invalid("item_not_found", str(err), param=part.field("item_id")) from err
    assert spec.embedding is not None, "parse_query lets exactly one form through"
    return unit_vector(spec.embedding, gallery.manifest.dim, param=part.field("embedding"))


def decode_base64(text: str, *, param: str) -> bytes:
    """Decode base64 or a base64 data URI.

    Raises:
        ApiError: 422 for anything else.
    """
    header, comma, payload = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
    if header and not (comma and header.lower().endswith(";base64")):
        message = f"{param} is a data URI without base64; accepted: data:image/jpeg;base64,..."
        raise invalid("invalid_base64", message, param=param)
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as err:
        message = f"{param} is not base64 ({err}); send the file's bytes in base64, or a data URI"
        raise invalid("invalid_base64", message, param=param) from err


def unit_vector(values: Sequence[float], dim: int, *, param: str) -> Vectors:
    """Check and normalise a given embedding: `[E]` float32 of length one.

    Raises:
        ApiError: 422 for a wrong length, a number out of range, or a vector of zeros.
    """
    if len(values) != dim:
        message = f"{param} has {len(values)} numbers; this gallery takes {dim}"
        raise invalid("embedding_length", message, param=param)
    vector = np.asarray(values, dtype=np.float64)
    largest = float(np.abs(vector).max())
    if not np.isfinite(largest) or largest == 0:
        message = f"{param} must hold finite numbers, not all zero"
        raise invalid("embedding_values", message, param=param)
    scaled = vector / largest  # so that squaring neither overflows nor vanishes
    return cast("Vectors", (scaled / np.linalg.norm(scaled)).astype(np.float32))


async def encode(
    queries: Sequence[Embedded], embedder: Embedder, timing: Timing, *, deadline_s: float
) -> None:
    """Replace texts and pixels by vectors, in place, with one job for each of the two."""
    good = [query for query in queries if query.error is None]
    places = [(query, n) for query in good for n in range(len(query.vectors))]
    texts = [(q, n) for q, n in places if isinstance(q.vectors[n], str)]
    imgs = [(q, n) for q, n in places if isinstance(q.vectors[n], Tensor)]
    if texts:
        job = Texts(tuple(cast("str", q.vectors[n]) for q, n in texts))
        await _encode_job(job, texts, embedder, timing, deadline_s)
    if imgs:
        pixels = Pixels(tuple(cast("Tensor", q.vectors[n]) for q, n in imgs))
        await _encode_job(pixels, imgs, embedder, timing, deadline_s)


async def _encode_job(
    job: Texts | Pixels,
    places: Sequence[tuple[Embedded, int]],
    embedder: Embedder,
    timing: Timing,
    deadline_s: float,
) -> None:
    done = await embedder.embed(job, deadline_s=deadline_s)
    timing.encoded(done)
    encoded = zip(places, done.value.z_BE, done.value.cut_at_B, strict=True)
    for (query, n), vector_E, cut_at in encoded:
        query.vectors[n] = vector_E
        if cut_at is not None:
            query.cut_at[n] = cut_at


def combine(query: Embedded) -> Vectors:
    """The query's unit vector `[E]`: the weighted sum of its parts, normalised.

    Raises:
        ApiError: the query's own error, or 422 if its parts cancel out.
    """
    if query.error is not None:
        raise query.error
    weights = [part.spec.weight for part in query.parts]
    vectors = cast("list[Vectors]", query.vectors)
    if weights == [1.0]:
        return vectors[0]
    largest = max(abs(weight) for weight in weights)
    scaled = np.asarray(weights, np.float64) / (largest or 1.0)
    total = scaled @ np.stack(vectors).astype(np.float64)
    length = float(np.linalg.norm(total))
    if length < _SHORTEST:
        raise _cancelled(query.parts)
    return cast("Vectors", (total / length).astype(np.float32))


def _cancelled(parts: Sequence[Part]) -> ApiError:
    first = parts[0]
    param = first.query or first.param
    if not any(part.spec.weight for part in parts):
        which = "the weight" if first.query is None else "every weight"
        message = f"{which} of {param} is 0, so that nothing is left to look for; give another"
    else:
        message = f"the weighted parts of {param} cancel out; change a weight"
    return invalid("query_cancels_out", message, param=param)
