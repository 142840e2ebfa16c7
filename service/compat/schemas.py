"""What goes over the wire for clients of other services; unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema

_INPUT = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "x-limits": {"maxItems": "max_queries"},
        },
    ],
    "description": "texts; or pictures: base64, data URIs or, where they are fetched, urls",
}


class Lenient(BaseModel):
    """Base of requests: immutable, unknown fields ignored, no NaN or infinity."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class EmbeddingsRequest(Lenient):
    """Body of `POST /v1/embeddings`; `user` and whatever else comes is ignored.

    `input` stays raw here: token arrays get an answer of their own.
    """

    input: Annotated[JsonValue, WithJsonSchema(_INPUT)]
    model: str | None = Field(default=None, description="the served model, which is the default")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, description="the model's own, or left out")
    modality: Literal["text", "image"] | None = None


class EmbeddingBody(BaseModel):
    """One vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that the model read; pictures count none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """Answer of `POST /v1/embeddings`: unit vectors in the order of `input`."""

    object: Literal["list"] = "list"
    data: list[EmbeddingBody]
    model: str
    usage: Usage


class ModelStats(BaseModel):
    """How full the queue of the encoder is."""

    queue_fraction: float
    queue_absolute: int
    batch_size: int


class ModelBody(BaseModel):
    """The served model.

    Attributes:
        created: 0, because a checkpoint does not say when it was made.
        owned_by: the one word that infinity's client accepts.
        stats: also for that client.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["infinity"] = "infinity"
    backend: Literal["torch"] = "torch"
    capabilities: list[str] = ["embed", "image_embed"]
    dimensions: int
    stats: ModelStats


class ModelList(BaseModel):
    """Answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


class UnixTime(BaseModel):
    """Answer of `GET /health`: seconds since 1970."""

    unix: float


class KnnRequest(Lenient):
    """Body of `POST /knn-service`.

    Of the four inputs the first that is there counts; null and empty ones are not there. What
    belongs to models that we do not have (`aesthetic_score`, `aesthetic_weight`, `use_mclip`,
    `use_safety_model`, `use_violence_detector`) is ignored.
    """

    text: str | None = None
    image: str | None = Field(default=None, description="base64, or a data URI")
    image_url: str | None = None
    embedding_input: list[float] | None = None
    modality: Literal["image", "text"] = Field(description="videos are searched as image")
    num_images: int = Field(ge=0, description="hits with metadata and thumbnail")
    num_result_ids: int | None = Field(default=None, ge=0, description="hits; else num_images")
    indice_name: str = Field(description="of the gallery")
    deduplicate: bool | None = None


class KnnHit(BaseModel):
    """One hit: beside `id` and `similarity` the metadata, as long as `num_images` lasts."""

    model_config = ConfigDict(extra="allow")

    id: int
    similarity: float
    image: str | None = Field(default=None, description="a JPEG in base64")


class MetadataRequest(Lenient):
    """Body of `POST /metadata`."""

    ids: list[int]
    indice_name: str


class RowMetadata(BaseModel):
    """Metadata of one id, with the thumbnail as `image`."""

    id: int
    metadata: dict[str, Any]
