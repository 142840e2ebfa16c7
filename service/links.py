"""Addresses of items: ids contain `/` and anything else, so the raw path decides.

`/items/a/b.jpg/thumbnail` is the thumbnail of `a/b.jpg`. An id that itself ends in `/thumbnail`, or
that a browser would rewrite, travels with its slashes as `%2F`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

from starlette.types import Scope

View = Literal["item", "thumbnail", "content"]

_ITEM = re.compile(r"/v1/galleries/[^/]+/items/(?P<rest>.*)$", re.DOTALL)
_AMBIGUOUS = {"", ".", ".."}
_VIEWS: dict[str, View] = {"thumbnail": "thumbnail", "content": "content"}


@dataclass(frozen=True)
class ItemAddress:
    """Which item a path names, and which view of it."""

    item_id: str
    view: View


def item_path(gallery: str, item_id: str) -> str:
    """Path of an item on this server, percent-encoded."""
    segments = item_id.split("/")
    plain = not _AMBIGUOUS.intersection(segments) and segments[-1] not in _VIEWS
    encoded = quote(item_id, safe="/" if plain else "")
    return f"{_items_path(gallery)}{encoded}"


@functools.lru_cache(maxsize=256)
def _items_path(gallery: str) -> str:
    return f"/v1/galleries/{quote(gallery, safe='')}/items/"


def parse_item_path(scope: Scope) -> ItemAddress:
    """Read the address from the request's raw path, where `%2F` is not yet `/`."""
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    match = _ITEM.search(raw.split(b"?")[0].decode("latin-1"))
    rest = match["rest"] if match else ""
    head, slash, tail = rest.rpartition("/")
    if slash and tail in _VIEWS:
        return ItemAddress(unquote(head), _VIEWS[tail])
    return ItemAddress(unquote(rest), "item")
