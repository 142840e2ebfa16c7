"""Client of COTS Retrieval: search pictures, videos and texts with words and pictures.

with Client("http://127.0.0.1:8000") as client:
    for hit in client.search("photos", "two dogs playing in snow", k=5).hits:
        ...
"""

from cots_client.async_client import AsyncClient
from cots_client.client import Client
from cots_client.errors import (
    AnswerError,
    APIError,
    AuthenticationError,
    ConflictError,
    CotsError,
    DeadlineError,
    DeadlineExceededError,
    GalleryChangedError,
    InputError,
    InvalidRequestError,
    ModelChangedError,
    NotFoundError,
    OverloadedError,
    PictureError,
    QueryError,
    TooLargeError,
    TransportError,
    UnavailableError,
)
from cots_client.queries import Part, Query, embedding, image, image_url, item, text
from cots_client.results import (
    Content,
    Embeddings,
    Frame,
    Gallery,
    Hit,
    Index,
    Item,
    Model,
    Moment,
    Readiness,
    Refused,
    Reloaded,
    SearchResult,
    SearchWarning,
    TookMs,
)
from cots_client.version import __version__

__all__ = [
    "APIError",
    "AnswerError",
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ConflictError",
    "Content",
    "CotsError",
    "DeadlineError",
    "DeadlineExceededError",
    "Embeddings",
    "Frame",
    "Gallery",
    "GalleryChangedError",
    "Hit",
    "Index",
    "InputError",
    "InvalidRequestError",
    "Item",
    "Model",
    "ModelChangedError",
    "Moment",
    "NotFoundError",
    "OverloadedError",
    "Part",
    "PictureError",
    "Query",
    "QueryError",
    "Readiness",
    "Refused",
    "Reloaded",
    "SearchResult",
    "SearchWarning",
    "TooLargeError",
    "TookMs",
    "TransportError",
    "UnavailableError",
    "__version__",
    "embedding",
    "image",
    "image_url",
    "item",
    "text",
]
