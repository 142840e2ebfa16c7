"""Where a collection is, as one url without secrets.

    milvus://host:19530/photos            a server, its default database
    milvus://host:19530/archive/photos    a database of it
    milvuss://host:443/photos             over TLS
    milvus:///srv/galleries.db/photos     a Milvus Lite file, opened by this process

The token (`user:password` or an API key) is taken from the environment variable
`COTS_MILVUS_TOKEN`, so that it is in no shell history and in no manifest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

from cots_model.errors import InputError

TOKEN_VARIABLE = "COTS_MILVUS_TOKEN"
DEFAULT_PORT = 19530
FORMS = (
    "milvus://HOST[:PORT]/[DATABASE/]COLLECTION, milvuss://… over TLS, "
    "or milvus:///ABSOLUTE/PATH.db/COLLECTION for a Milvus Lite file"
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


@dataclass(frozen=True)
class Address:
    """One collection.

    Attributes:
        endpoint: what the client library connects to: `http://host:port`, `https://…`, or the
            absolute path of a Milvus Lite file.
        database: name of the database; empty for the default one.
        collection: name of the collection.
    """

    endpoint: str
    database: str
    collection: str

    @property
    def is_file(self) -> bool:
        """Whether this is a Milvus Lite file."""
        return self.endpoint.startswith("/")

    @property
    def uri(self) -> str:
        """The url without the collection; what a manifest keeps."""
        if self.is_file:
            return f"milvus://{quote(self.endpoint)}"
        scheme, _, host = self.endpoint.partition("://")
        database = f"/{self.database}" if self.database else ""
        return f"{'milvuss' if scheme == 'https' else 'milvus'}://{host}{database}"

    def __str__(self) -> str:
        return f"{self.uri}/{self.collection}"


def parse_address(url: str) -> Address:
    """Read a url.

    Raises:
        InputError: if it is none of the accepted forms, or holds a user or a password (which is
            not repeated in the message).
    """
    try:
        parts = urlsplit(url)
    except ValueError as err:  # half of an IPv6 address
        raise InputError(f"no Milvus url ({err}); accepted: {FORMS}") from err
    if "@" in parts.netloc or (not url.startswith("milvus:///") and "@" in url):
        raise InputError(
            f"the Milvus url holds credentials; set {TOKEN_VARIABLE}=user:password (or an API "
            f"key) instead and give {FORMS}"
        )
    url = url.split("?")[0]  # behind it, too, there may be a secret
    if parts.scheme not in ("milvus", "milvuss") or parts.query or parts.fragment:
        raise InputError(f"{url!r} is no Milvus url; accepted, without ? and #: {FORMS}")
    if parts.netloc:
        return _server(url, parts)
    return _file(url, parts)


def _server(url: str, parts: SplitResult) -> Address:
    names = [unquote(name) for name in parts.path.strip("/").split("/")]
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError as err:
        raise InputError(f"{url!r} has no usable port; 1 to 65535 is accepted") from err
    if not parts.hostname or not 1 <= len(names) <= 2:
        raise InputError(f"{url!r} is no Milvus url; accepted: {FORMS}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    scheme = "https" if parts.scheme == "milvuss" else "http"
    database = _name(names[0], "database") if len(names) == 2 else ""
    return Address(f"{scheme}://{host}:{port}", database, _name(names[-1], "collection"))


def _file(url: str, parts: SplitResult) -> Address:
    path, _, collection = parts.path.rpartition("/")
    path = unquote(path)
    if parts.scheme != "milvus" or not path.startswith("/") or not path.endswith(".db"):
        raise InputError(f"{url!r} is no Milvus url; accepted: {FORMS}")
    return Address(path, "", _name(unquote(collection), "collection"))


def _name(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be a Milvus {what}; letters, digits and _ are accepted, at most 255, "
            "not beginning with a digit"
        )
    return name
