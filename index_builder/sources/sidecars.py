"""Files beside an item that say something of it: `name.json`, `name.txt` and `name.cls`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from index_builder.items import Json, clean_metadata
from index_builder.location import ContentError
from index_builder.sources.entry import ReaderCounts, has_suffix
from index_builder.sources.kinds import Kind

MAX_SIDECAR_BYTES = 1024 * 1024


class Siblings:
    """The file names of one folder: which of them are sidecars of an item."""

    def __init__(self, names: set[str], kind: Kind) -> None:
        """Take all names of the folder."""
        self._names = names
        self._kind = kind
        self._stems = {
            os.path.splitext(name)[0] for name in names if has_suffix(name, kind.suffixes)
        }

    def is_sidecar(self, name: str) -> bool:
        """Whether a file says something of an item beside it."""
        return has_suffix(name, self._kind.sidecars) and os.path.splitext(name)[0] in self._stems

    def sidecars_of(self, name: str) -> list[str]:
        """In the order to be laid over each other: `.json` over `.txt`."""
        stem = os.path.splitext(name)[0]
        found = {stem + suffix for suffix in self._kind.sidecars} & self._names
        return sorted(found, reverse=True)


def read_sidecar(read: Callable[[], bytes], name: str, counts: ReaderCounts) -> dict[str, Json]:
    """Metadata from a file beside an item; a bad one is counted and gives nothing.

    `.json` must hold an object, which is taken over; `.txt` becomes `caption`, `.cls` `class`.

    Args:
        read: gives its bytes, or raises ContentError or ValueError.
        name: its name with extension.
        counts: where a bad one is counted.
    """
    try:
        return _parse(os.path.splitext(name)[1].lower(), read())
    except (ContentError, ValueError, RecursionError) as err:
        counts.bad_sidecars += 1
        counts.first_bad_sidecar = counts.first_bad_sidecar or f"{name}: {err}"
        return {}


def _parse(suffix: str, data: bytes) -> dict[str, Json]:
    if len(data) > MAX_SIDECAR_BYTES:
        raise ValueError(f"over {MAX_SIDECAR_BYTES:,} bytes")
    text = data.decode("utf-8-sig").strip()
    if suffix == ".txt":
        return clean_metadata({"caption": text}) if text else {}
    if suffix == ".cls":
        return clean_metadata({"class": int(text) if text.isdigit() else text})
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("a JSON object is needed")  # noqa: TRY004
    return clean_metadata(values)
