"""What the methods give back: frozen dataclasses with the names of the service's fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cots_client.errors import ModelChangedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The best of the frames of a video.

    Attributes:
        time_s: when it is shown, in seconds from the start of the video, also of a segment.
        frame: its number, from 0.
        score: of the frame.
    """

    time_s: float
    frame: int
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One of the frames of a video, `time_s` seconds from its start."""

    time_s: float
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One hit of a search.

    Attributes:
        id: of the item.
        score: dot product of the unit vectors of query and item.
        uri: of the original, as the gallery was built from it.
        metadata: columns of the item; empty if `include` leaves them out.
        thumbnail: path on the server; of a video that of its moment; texts have none.
        embedding: unit vector of the item, if `include` names it.
        text: of a text gallery alone.
        start_s: of the segment of a video, like `end_s`.
        end_s: see `start_s`.
        moment: of a video alone.
        frames: of a video, all of them, if `include` names them.
    """

    id: str
    score: float
    uri: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    thumbnail: str | None = None
    embedding: tuple[float, ...] | None = field(default=None, repr=False)
    text: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    moment: Moment | None = None
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TookMs:
    """Where the time went in the server, in milliseconds.

    Attributes:
        queue: waiting for a free decoder, encoder and searcher.
        encode: decoding pictures, and the forward pass.
        search: in the index, and collecting the hits.
        total: from the arrival of the request to its answer.
    """

    queue: float
    encode: float
    search: float
    total: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchWarning:
    """A part of a query that the server passed over.

    Attributes:
        message: what, in words.
        param: the field, dotted.
        code: `text_cut` where words are more than the model reads.
    """

    message: str
    param: str
    code: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """Hits by score, ties by id.

    Attributes:
        gallery: its name.
        version: that was searched.
        model: that embedded the query.
        took_ms: of the request; queries that went together share it.
        hits: the best first.
        warnings: of what was passed over; as a rule there are none.
    """

    gallery: str
    version: str
    model: str
    took_ms: TookMs
    hits: tuple[Hit, ...]
    warnings: tuple[SearchWarning, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """Kind and parameters of a gallery's index."""

    kind: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A published version that is not served.

    Attributes:
        version: its name; `None` if the gallery does not even say.
        reason: `damaged`, `other_model`, `self_test`, `too_big` or `failed`.
        message: the same in words.
        since: when it was first refused, ISO 8601.
    """

    version: str | None
    reason: str
    message: str
    since: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """A gallery as it is served.

    Attributes:
        name: of it.
        modality: `image`, `video` or `text`.
        count: items.
        dim: length of its vectors.
        index: what it is searched with.
        version: that is served.
        model: that its vectors come from.
        model_fingerprint: of that model's weights and preprocessing.
        created: when the version was built, ISO 8601.
        loaded: when the server took it, ISO 8601.
        refused: the version that is published, where that could not be taken in its place.
    """

    name: str
    modality: str
    count: int
    dim: int
    index: Index
    version: str
    model: str
    created: str
    model_fingerprint: str | None = None
    loaded: str | None = None
    refused: Refused | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reloaded:
    """What `reload` did.

    Attributes:
        gallery: its name.
        previous_version: that was served before; `None` if none was.
        version: that is served now; the same, if there was no newer one.
    """

    gallery: str
    previous_version: str | None
    version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One item of a gallery.

    Attributes:
        id: of it.
        gallery: that it is in.
        uri: of the original.
        size_bytes: of the original.
        sha256: of the original, in hex.
        content: path of the original on the server.
        modified: when the original was changed, ISO 8601, where that is known.
        thumbnail: path on the server; texts have none.
        text: of a text gallery alone.
        start_s: of the segment of a video, like `end_s`.
        end_s: see `start_s`.
        duration_s: of the whole video.
        metadata: its columns.
    """

    id: str
    gallery: str
    uri: str
    size_bytes: int
    sha256: str
    content: str
    modified: str | None = None
    thumbnail: str | None = None
    text: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    duration_s: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """Bytes of an original, all or some.

    Attributes:
        data: the bytes.
        first: number of the first one in the original.
        size_bytes: of the whole original.
        content_type: by its file name.
        etag: tells whether it is still the same.
    """

    data: bytes = field(repr=False)
    first: int
    size_bytes: int
    content_type: str
    etag: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Embeddings:
    """Unit vectors in the order of what was embedded.

    Attributes:
        vectors: one for each input.
        model: that they come from.
        num_tokens: that the model read; pictures count none.
    """

    vectors: tuple[tuple[float, ...], ...] = field(repr=False)
    model: str
    num_tokens: int

    @classmethod
    def joined(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Those of several requests, at least one, as if it had been one.

        Raises:
            ModelChangedError: if they are not of one model.
        """
        vectors = tuple(vector for part in parts for vector in part.vectors)
        kinds = {(part.model, len(vector)) for part in parts for vector in part.vectors}
        if len(kinds) > 1:
            found = " and ".join(f"{model} ({dim} numbers)" for model, dim in sorted(kinds))
            message = f"the vectors of {len(vectors)} inputs are of {found}, which do not compare"
            raise ModelChangedError(f"{message}; embed all of them again")
        return cls(
            vectors=vectors,
            model=parts[-1].model,
            num_tokens=sum(part.num_tokens for part in parts),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The served model.

    Attributes:
        id: its name.
        dimensions: length of its vectors.
        capabilities: such as `embed` and `image_embed`.
    """

    id: str
    dimensions: int | None = None
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """Whether a server should get traffic.

    Attributes:
        status: `ok` or `unavailable`.
        reasons: why it is not ready.
        warnings: what else is wrong, while it is ready all the same.
    """

    status: str
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether it is."""
        return self.status == "ok"
