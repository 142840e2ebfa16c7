"""Page after page of one search, until there is no more."""

from __future__ import annotations

from cots_client import calls
from cots_client.calls import SearchOptions
from cots_client.errors import GalleryChangedError, InputError
from cots_client.queries import Query, parse
from cots_client.results import Hit, SearchResult
from cots_client.wire import Call, gallery_path


class Pages:
    """Says which page to ask for next, and what of it is new.

    Args:
        gallery: to search.
        query: for what; a stream is read once.
        page_size: hits of each request.
        limit: hits in all; `None`: as far as the server pages.
        options: as of a search.
    """

    def __init__(
        self,
        gallery: str,
        query: Query,
        *,
        page_size: int,
        limit: int | None,
        options: SearchOptions,
    ) -> None:
        if page_size < 1 or (limit is not None and limit < 0):
            raise InputError(f"page_size is {page_size} and limit {limit}; give 1 or more, and 0")
        gallery_path(gallery)
        self._fields = calls.search_fields(page_size, 0, options)
        self._query = parse(query)
        self._gallery = gallery
        self._page_size = page_size
        self._limit = limit
        self._num_hits = 0
        self._asked = 0
        self._ended = False
        self._version: str | None = None

    def next(self) -> Call[SearchResult] | None:
        """The next request; `None` at the end."""
        left = None if self._limit is None else self._limit - self._num_hits
        if self._ended or left == 0:
            return None
        self._asked = self._page_size if left is None else min(self._page_size, left)
        fields = {**self._fields, "k": self._asked, "offset": self._num_hits}
        return calls.search_parsed(self._gallery, self._query, fields)

    def take(self, page: SearchResult) -> tuple[Hit, ...]:
        """The hits of its answer.

        Raises:
            GalleryChangedError: if it comes from another version than the pages before.
        """
        if self._version not in (None, page.version):
            message = (
                f"gallery {self._gallery!r} went from version {self._version} to {page.version} "
                f"after {self._num_hits} hits; begin again, or ask for all in one search"
            )
            raise GalleryChangedError(message)
        self._version = page.version
        self._num_hits += len(page.hits)
        self._ended = len(page.hits) < self._asked
        return page.hits
