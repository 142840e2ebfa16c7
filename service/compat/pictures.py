"""Pictures as fields of other protocols give them: base64, a data URI, or a url."""

from __future__ import annotations

from service.fetch.fetcher import no_image_urls
from service.queries import Part
from service.schemas import QueryPart
from service.settings import Settings


def picture_query(value: str, *, param: str, settings: Settings) -> tuple[Part, ...]:
    """A query by the picture in the field `param`.

    Raises:
        ApiError: 422 for a url, if pictures are not fetched.
    """
    if value[:8].lower().startswith(("http://", "https://")):
        return url_query(value, param=param, settings=settings)
    return (Part(QueryPart(image=value), param, flat=True),)


def url_query(url: str, *, param: str, settings: Settings) -> tuple[Part, ...]:
    """A query by the picture that the url in the field `param` gives.

    Raises:
        ApiError: 422 if pictures are not fetched.
    """
    if not settings.image_urls:
        raise no_image_urls(param)
    return (Part(QueryPart(image_url=url), param, flat=True),)
