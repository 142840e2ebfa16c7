"""What can be searched for: words, pictures, items, vectors, and weighted lists of these.

client.search("photos", "a beach")
client.search("photos", Path("query.jpg"))
client.search("photos", [text("a beach"), text("people", weight=-0.5), image("sunset.jpg")])
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from cots_client.errors import InputError, PictureError

Form = Literal["text", "image", "image_url", "item_id", "embedding"]
Picture: TypeAlias = bytes | os.PathLike[str] | BinaryIO

_ACCEPTED = (
    "words, a picture (bytes, a Path, a file opened with 'rb'), or text(), image(), image_url(), "
    "item() or embedding() of this package"
)


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to look for, made by `text`, `image`, `image_url`, `item` or `embedding`.

    Attributes:
        form: which of these.
        value: a text, the bytes of a picture, or the numbers of a vector.
        weight: how much it counts in a list; negative: away from it.
    """

    form: Form
    value: str | bytes | tuple[float, ...] = field(repr=False)
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float):
            kind = type(self.weight).__name__
            raise InputError(f"weight is a {kind}; give a number, negative for: not that")
        if not math.isfinite(self.weight):
            raise InputError(f"weight is {self.weight}; give a finite number")

    def to_json(self) -> dict[str, Any]:
        """As the service takes it; pictures in base64."""
        value: Any = self.value
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode("ascii")
        return {self.form: value} if self.weight == 1 else {self.form: value, "weight": self.weight}


Query: TypeAlias = str | Picture | Part | Sequence[str | Picture | Part]


def text(words: str, *, weight: float = 1.0) -> Part:
    """Words."""
    return Part("text", _text("words", words), weight)


def image(source: str | Picture, *, weight: float = 1.0) -> Part:
    """A picture: the path of a file, bytes, or a file opened with 'rb', which is read at once.

    Raises:
        PictureError: if it cannot be read.
    """
    return Part("image", _read_picture(source), weight)


def image_url(url: str, *, weight: float = 1.0) -> Part:
    """A picture that the server fetches; most servers do not."""
    return Part("image_url", _text("url", url), weight)


def item(item_id: str, *, weight: float = 1.0) -> Part:
    """An item of the gallery that is searched, by its id."""
    return Part("item_id", _text("item_id", item_id), weight)


def embedding(values: Iterable[float], *, weight: float = 1.0) -> Part:
    """A vector of the gallery's dimension, of any length but zero: the server normalises it.

    Raises:
        InputError: if these are no finite numbers.
    """
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as err:
        raise InputError(f"embedding takes a flat list of numbers ({err})") from err
    if not all(map(math.isfinite, numbers)):
        raise InputError("embedding has a number that is NaN or infinite; give finite ones")
    return Part("embedding", numbers, weight)


def parse(query: Query, where: str = "query") -> Part | tuple[Part, ...]:
    """One part, or a weighted list.

    Args:
        query: as the caller gave it.
        where: it is, for messages.

    Raises:
        InputError: for anything else.
        PictureError: for pictures that cannot be read.
    """
    if isinstance(query, Sequence) and not is_single(query):
        if not query:
            raise InputError(f"{where} is an empty list; give {_ACCEPTED}")
        return tuple(as_part(part, f"{where}[{n}]") for n, part in enumerate(query))
    return as_part(query, where)


def is_single(value: object) -> bool:
    """Whether it is one thing to look for, also if it can be iterated."""
    return isinstance(value, str | Part) or is_picture(value)


def is_picture(value: object) -> bool:
    """Whether it is what pictures are read from."""
    return isinstance(value, bytes | bytearray | memoryview | os.PathLike) or hasattr(value, "read")


def as_part(value: object, where: str) -> Part:
    """A part as it is, words as text, and whatever can be read as a picture."""
    if isinstance(value, Part):
        return value
    if isinstance(value, str):
        return text(value)
    if is_picture(value):
        return Part("image", _read_picture(value))
    raise InputError(f"{where} is a {type(value).__name__}; accepted: {_ACCEPTED}")


def to_json(query: Part | tuple[Part, ...]) -> Any:
    """A parsed query as the service takes it."""
    return query.to_json() if isinstance(query, Part) else [part.to_json() for part in query]


def lone_picture(query: Part | tuple[Part, ...]) -> bytes | None:
    """The picture, if the query is one and nothing else."""
    part = query[0] if isinstance(query, tuple) and len(query) == 1 else query
    if isinstance(part, Part) and isinstance(part.value, bytes) and part.weight == 1:
        return part.value
    return None


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise InputError(f"{name} is a {type(value).__name__}; give a str")


def _read_picture(source: object) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        try:
            return Path(source).read_bytes()
        except (OSError, ValueError) as err:
            reason = getattr(err, "strerror", None) or err
            message = f"picture {os.fspath(source)!r} cannot be read ({reason}); give another path"
            raise PictureError(message) from err
    read = getattr(source, "read", None)
    if isinstance(source, Part):
        raise InputError(
            "this takes the picture itself, not image(...) of it; give a path, bytes, or a file "
            "opened with 'rb'"
        )
    if read is None:
        kind = type(source).__name__
        raise InputError(f"a picture is a {kind}; give a path, bytes, or a file opened with 'rb'")
    try:
        data = read()
    except (OSError, ValueError) as err:
        message = f"a picture cannot be read ({err}); give a file opened with 'rb'"
        raise PictureError(message) from err
    if not isinstance(data, bytes):
        raise InputError("the picture was opened as text; open it with mode 'rb'")
    return data
