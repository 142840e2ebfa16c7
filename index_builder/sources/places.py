"""Local paths and urls alike: opening, joining, and asking when one was written."""

from __future__ import annotations

import os
from typing import BinaryIO
from urllib.parse import urlsplit

from index_builder.content import open_location
from index_builder.location import Location, Stamp, is_url, scheme_of


def open_place(place: str, *, block_bytes: int | None = None) -> tuple[BinaryIO, Stamp]:
    """Open a local file or a url for reading and seeking.

    Args:
        place: absolute path or url.
        block_bytes: how much of a url is asked for at once.

    Raises:
        ContentError: if it cannot be read.
    """
    if is_url(place) and block_bytes is not None:
        from index_builder.remote import open_url

        return open_url(Location(place), block_bytes=block_bytes)
    return open_location(Location(place))


def folder_of(place: str) -> str:
    """The folder that a file lies in; of a url without its query."""
    if not is_url(place):
        return os.path.dirname(place)
    if scheme_of(place) in ("http", "https"):
        parts = urlsplit(place)
        place = f"{parts.scheme}://{parts.netloc}{parts.path}"
    head, _, _ = place.rpartition("/")
    return head if "://" in head and not head.endswith(":/") else place


def join(folder: str, name: str) -> str:
    """A name with `/` below a folder."""
    if is_url(folder):
        return f"{folder if folder.endswith('://') else folder.rstrip('/')}/{name}"
    return os.path.join(folder, *name.split("/"))


def suffix_of(place: str) -> str:
    """The ending of a file's name in lower case, such as `.tar`; of a url without its query."""
    path = place
    if is_url(place) and scheme_of(place) in ("http", "https"):
        path = urlsplit(place).path
    return os.path.splitext(path.rstrip("/"))[1].lower()
