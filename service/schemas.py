"""What goes over the wire: requests (unknown fields refused) and responses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.json_schema import SkipJsonSchema

MOST_INCLUDED = 16
MOST_SCORE = 1.001
"""Scores are from -1 to 1, but that of a vector and itself may be a little more in float32."""


class Strict(BaseModel):
    """Base of requests: immutable, unknown fields refused, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class QueryPart(Strict):
    """One thing to look for: exactly one of the five forms, and its weight."""

    text: str | None = None
    image: str | None = Field(default=None, description="base64, or a data URI")
    image_url: str | None = None
    item_id: str | None = None
    embedding: list[float] | None = Field(default=None, fail_fast=True)
    weight: float = 1.0

    def forms(self) -> list[str]:
        """Names of the forms that were given."""
        names = ("text", "image", "image_url", "item_id", "embedding")
        return [name for name in names if getattr(self, name) is not None]


class SearchOptions(Strict):
    """Everything of a search but what is looked for."""

    k: int = Field(default=10, json_schema_extra={"minimum": 1, "x-limits": {"maximum": "max_k"}})
    offset: int = Field(
        default=0, json_schema_extra={"minimum": 0, "x-limits": {"maximum": "max_offset"}}
    )
    min_score: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="leave out hits below",
        # bounds say nothing of null
        json_schema_extra={"minimum": -MOST_SCORE, "maximum": MOST_SCORE},
    )
    filter: dict[str, JsonValue] | None = Field(
        default=None,
        description="conditions on metadata; operators eq ne in nin gt gte lt lte exists contains, "
        "combined with and, or, not",
        examples=[{"category": {"in": ["beach", "lake"]}, "year": {"gte": 2020}}],
    )
    deduplicate: bool = Field(
        default=False, description="of near-duplicates only the best; offset counts these"
    )
    include: list[Literal["metadata", "embedding", "frames"]] = Field(
        default=["metadata"], max_length=MOST_INCLUDED
    )
    rank_by: Literal["mean", "frame"] = "mean"


class SearchRequest(SearchOptions):
    """Body of `POST /v1/galleries/{g}/search`.

    `query` and the entries of `queries` stay raw here: they are checked one by one, so that a bad
    one in a batch fails alone.
    """

    model_config = ConfigDict(allow_inf_nan=True)

    query: JsonValue = None
    queries: list[JsonValue] | None = None


class ErrorBody(BaseModel):
    """What went wrong, for people (`message`) and programs (`type`, `param`, `code`)."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """Every answer that is not a success."""

    error: ErrorBody


class FrameBody(BaseModel):
    """One of the frames of a video, beside the query.

    Attributes:
        time_s: when it is shown, from the start of the video, also of a segment.
        score: of the frame.
    """

    model_config = ConfigDict(from_attributes=True)

    time_s: float
    score: float


class MomentBody(BaseModel):
    """The best of them; `frame` is its number, from 0."""

    model_config = ConfigDict(from_attributes=True)

    time_s: float
    frame: int
    score: float


class HitBody(BaseModel):
    """One hit; `metadata`, `embedding` and `frames` are there when `include` names them.

    Attributes:
        row: of the item in the version searched; not sent.
        thumbnail: of a video, its best frame; texts have none.
        text: of a text gallery alone.
        moment: of a video alone, like `frames`.
        start_s: of the segment of a video, like `end_s`.
    """

    row: SkipJsonSchema[int] = Field(default=-1, exclude=True)
    id: str
    score: float
    uri: str
    thumbnail: str | None = None
    metadata: dict[str, Any] | None = None
    embedding: list[float] | None = None
    text: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    moment: MomentBody | None = None
    frames: list[FrameBody] | None = None


class TookMs(BaseModel):
    """Where the time went, in milliseconds.

    Attributes:
        queue: waiting for a free decoder, encoder and searcher.
        encode: decoding pictures, and the forward pass this request was part of.
        search: in the index, and collecting the hits.
        total: from the first byte of the request to this answer.
    """

    queue: float
    encode: float
    search: float
    total: float


class WarningBody(BaseModel):
    """Something of the request that was not taken as it came; `param` is the field, dotted."""

    message: str
    param: str
    code: Literal["text_cut"]


class QueryResult(BaseModel):
    """Answer to one entry of `queries`: hits, or why this one failed."""

    hits: list[HitBody] | None = None
    warnings: list[WarningBody] | None = None
    error: ErrorBody | None = None


class SearchResponse(BaseModel):
    """Answer to a search: `hits` for `query`, `results` for `queries`.

    `warnings` are there where a part of the request was passed over.
    """

    gallery: str
    version: str
    model: str
    took_ms: TookMs
    hits: list[HitBody] | None = None
    warnings: list[WarningBody] | None = None
    results: list[QueryResult] | None = None


class ExplainRequest(Strict):
    """Body of `POST /v1/explain`: a text, and the picture of an item or one that is sent along.

    Attributes:
        time_s: of a video the frame that is explained; else the one in the middle.
        start_layer: first layer of the image tower that counts; early ones may show artefacts.
    """

    text: str = Field(json_schema_extra={"pattern": r"\S"})
    gallery: str | None = None
    item_id: str | None = None
    image: str | None = Field(default=None, description="base64, or a data URI")
    overlay: bool = Field(default=False, description="whether the maps are drawn on the picture")
    time_s: float | None = Field(
        default=None, ge=0, description="of a video: which frame, in seconds; else the middle one"
    )
    start_layer: int = Field(
        default=0, ge=0, description="first layer of the image tower that counts"
    )


class ExplainedWord(BaseModel):
    """One word, and where in the picture it is.

    Attributes:
        start: character of the text where the word begins.
        end: the one behind its last.
        similarity: of the vectors of the picture and of the word as it stands in the text.
        map: `[h][w]` from 0 (the least of this map) to 1, over the grid of the image tower.
        overlay: a PNG of the picture under the map, in base64.
    """

    word: str
    start: int
    end: int
    similarity: float
    map: list[list[float]]
    overlay: str | None = None


class ExplainTookMs(BaseModel):
    """Where the time went, in milliseconds."""

    queue: float
    explain: float
    total: float


class ExplainResponse(BaseModel):
    """Answer of `POST /v1/explain`: `similarity` is that of the whole text and the picture."""

    model: str
    similarity: float
    words: list[ExplainedWord]
    took_ms: ExplainTookMs


class IndexBody(BaseModel):
    """The gallery's index."""

    kind: str
    parameters: dict[str, Any]


class RefusedBody(BaseModel):
    """A published version that is not served.

    Attributes:
        version: its name; null if the gallery does not even say.
        reason: `damaged`, `other_model`, `self_test`, `too_big` or `failed`.
        message: the same in words.
        since: when it was first refused.
    """

    version: str | None
    reason: str
    message: str
    since: str


class GalleryBody(BaseModel):
    """What a client may know of a gallery.

    Attributes:
        loaded: when this version was taken.
        refused: the version that is published, where that could not be taken in its place.
    """

    name: str
    modality: str
    count: int
    dim: int
    index: IndexBody
    version: str
    model: str
    model_fingerprint: str
    created: str
    loaded: str | None = None
    refused: RefusedBody | None = None


class ReloadBody(BaseModel):
    """Answer of `POST /v1/galleries/{g}/reload`.

    Attributes:
        previous_version: that was served when the request came; null if none was.
        version: that is served now.
    """

    gallery: str
    previous_version: str | None
    version: str


class GalleryList(BaseModel):
    """Answer of `GET /v1/galleries`."""

    galleries: list[GalleryBody]


class ItemBody(BaseModel):
    """One item of a gallery.

    Attributes:
        modified: left out where the original's place tells no time, as some web servers do.
        thumbnail: texts have none.
        text: of a text gallery alone.
        start_s: of the segment of a video, like `end_s`.
        duration_s: of the whole video.
    """

    id: str
    gallery: str
    uri: str
    size_bytes: int
    modified: str | None = None
    sha256: str
    thumbnail: str | None = None
    content: str
    text: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    duration_s: float | None = None
    metadata: dict[str, Any]


class Health(BaseModel):
    """Answer of `/livez` and `/readyz`."""

    status: Literal["ok", "unavailable"]
    reasons: list[str] = []
    warnings: list[str] = []
