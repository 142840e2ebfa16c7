"""Where originals lie: local files, byte ranges of shards, and urls; and how an item's uri says so.

A place is an absolute local path, or a url that fsspec opens, such as `s3://bucket/a b.jpg`. Only
the standard library and `cots_model.errors` are imported: worker processes start with this module.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, quote, quote_from_bytes, unquote, unquote_to_bytes, urlsplit

from cots_model.errors import InputError

_URL = re.compile(r"^([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_USER = re.compile(r"()://[^/@\s]*@")
# Buckets have no port, and a password may hold a slash, as those of S3 do.
_BUCKET_LOGIN = re.compile(r"\b(s3a?|gcs|gs|abfss?|az|oss)://[^/\s:@]*:(?:\S*@|\S*)", re.IGNORECASE)
_PASSWORD = re.compile(r"()://[^/\s:@\[]*:(?!\d+(?:[/?#\s]|$))(?:\S*@|\S*)")
_CHAIN = re.compile(r"::[a-z0-9+.-]*://", re.IGNORECASE)
_QUERY = re.compile(r"(://[^\s?#]*)\?[^\s#]*")
_SECRET = re.compile(
    r"signature|credential|token|secret|passw|accesskey|api_?key|^sig$|^key$", re.I
)
_KEPT = "/!$&'()*+,;=:@~|[]{}"  # of a key, as it is written in a uri


class ContentError(InputError):
    """An original that cannot be read.

    Attributes:
        reason: short stable code: `unreadable`, `missing`, `broken_symlink`, `symlink_loop`,
            `symlink_outside`, `outside_root`, `not_a_file`, `too_large`, `truncated`, `timeout` or
            `changed`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ContentError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class Location:
    """Where the bytes of one item lie.

    Attributes:
        path: the file, or the shard that holds it; a local path or a url.
        offset_bytes: start of the member inside the shard; `None` for a whole file.
        size_bytes: length of the member; `None` for a whole file.
        root: the folder or url that it must lie in, once symlinks are followed; `None` for any.
    """

    path: str
    offset_bytes: int | None = None
    size_bytes: int | None = None
    root: str | None = None


@dataclass(frozen=True)
class Stamp:
    """What tells cheaply whether a file has changed.

    Attributes:
        size_bytes: its length.
        mtime_s: modification time, seconds since 1970; of a url in whole seconds, and 0.0 where
            the server tells none: then the stamp proves nothing.
    """

    size_bytes: int
    mtime_s: float


def is_url(place: str) -> bool:
    """Whether a place is a url; a local path never is."""
    return _URL.match(place) is not None


def scheme_of(url: str) -> str:
    """The protocol of a url, in lower case."""
    match = _URL.match(url)
    assert match is not None, url
    return match[1].lower()


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; names of files need not be."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def name_of(place: str) -> str:
    """The last part of a path or url, for messages."""
    return place.rstrip("/").rsplit("/", 1)[-1] or place


def redact(text: str) -> str:
    """A text without logins and query strings in the urls that it names."""
    for login in (_BUCKET_LOGIN, _PASSWORD, _USER):
        text = login.sub(r"\1://...@", text)
    return _QUERY.sub(r"\1?...", text)


def url_problem(url: str) -> str | None:
    """Why a url is refused: it holds a secret, which would be stored, or is several in one."""
    web = scheme_of(url) in ("http", "https")
    if _CHAIN.search(url):
        return "is a chain of urls; one plain url is accepted"
    if _BUCKET_LOGIN.search(url) or _PASSWORD.search(url) or (web and _USER.search(url)):
        return "holds a login; put it into the protocol's own settings, such as AWS_* variables"
    if web:
        names = [name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)]
        if any(_SECRET.search(name) for name in names):
            return "is signed or holds a key, which would be stored; give it without, or a file"
    return None


def file_uri(path: str, member: str | None = None) -> str:
    """A `file://` uri; a shard's member is named behind `#`."""
    uri = "file://" + quote_from_bytes(os.fsencode(os.path.abspath(path)))
    return uri if member is None else f"{uri}#{quote_from_bytes(os.fsencode(member))}"


def uri_of(place: str, member: str | None = None) -> str:
    """The uri of a local path or url: `s3://bucket/a.tar#member`; `place_of` leads back.

    Web addresses stay as they are; in the keys of other protocols `%`, `?`, `#` and whatever else
    a url cannot hold are percent-encoded.
    """
    if not is_url(place):
        return file_uri(place, member)
    if scheme_of(place) in ("http", "https"):
        uri = place.split("#", 1)[0]
    else:
        scheme, rest = place.split("://", 1)
        uri = f"{scheme}://{quote(rest, safe=_KEPT)}"
    return uri if member is None else f"{uri}#{quote_from_bytes(os.fsencode(member))}"


def place_of(uri: str) -> str:
    """The local path or url that an item's uri names; a shard's member is dropped.

    Raises:
        ContentError: if it is no uri.
    """
    if not is_url(uri):
        raise ContentError("unreadable", f"{uri} is no uri; file:// and urls can be read")
    scheme = scheme_of(uri)
    if scheme == "file":
        return path_of_uri(uri)
    whole = uri.split("#", 1)[0]
    return whole if scheme in ("http", "https") else unquote(whole)


def path_of_uri(uri: str) -> str:
    """The local path of a `file://` uri.

    Raises:
        ContentError: for any other scheme.
    """
    parts = urlsplit(uri)
    if parts.scheme != "file":
        raise ContentError("unreadable", f"{uri} cannot be opened; only file:// items can be read")
    return os.fsdecode(unquote_to_bytes(parts.path))


def location_of(
    uri: str, offset_bytes: int | None, size_bytes: int | None, roots: tuple[str, ...]
) -> Location:
    """From an item's uri and byte range to its bytes, guarded by the gallery's roots.

    Args:
        uri: as the item has it.
        offset_bytes: start of a member in its shard; `None` for a file of its own.
        size_bytes: length of the item; used with an offset only.
        roots: absolute folders, files or urls.

    Raises:
        ContentError: `outside_root` if the original lies in none of the roots.
    """
    place = place_of(uri)
    root = next((root for root in roots if lies_in(place, root)), None)
    if root is None:
        raise ContentError(
            "outside_root", f"{redact(uri)} lies outside the gallery's sources; build it again"
        )
    guard = None if root == place else root
    if offset_bytes is None:
        return Location(place, root=guard)
    return Location(place, offset_bytes, size_bytes, root=guard)


def lies_in(place: str, root: str) -> bool:
    """Whether a path or url is a root or lies under it, by its name; `..` never does."""
    if is_url(place) != is_url(root):
        return False
    if is_url(place):
        if ".." in unquote(place).split("/"):
            return False
        return place == root or place.startswith(root.rstrip("/") + "/")
    return PurePosixPath(os.path.normpath(place)).is_relative_to(root)
