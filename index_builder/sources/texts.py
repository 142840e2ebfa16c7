"""Texts as items: one per file, line, row or caption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from cots_model.faults import shortened
from index_builder.items import Json
from index_builder.location import Stamp
from index_builder.sources.entry import Candidate, Skip

MAX_TEXT_BYTES = 1024 * 1024
TEXT_KEYS = ("text", "caption", "captions")
"""Where texts stand in a row or a sidecar; the first that is there is taken."""


def as_text(entry: Candidate, data: bytes) -> Candidate | Skip:
    """An entry with the text that its bytes are."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        why = f"it is not UTF-8 ({err.reason} at byte {err.start:,}); save it as UTF-8"
        return Skip(entry.id, entry.uri, "damaged", why)
    return with_text(entry, text)


def with_text(entry: Candidate, text: str) -> Candidate | Skip:
    """An entry with its text, stripped; its size is the text's own."""
    text = text.encode("utf-8", "replace").decode("utf-8").strip()
    size_bytes = len(text.encode())
    if not text:
        return Skip(entry.id, entry.uri, "empty", "there is no text in it")
    if size_bytes > MAX_TEXT_BYTES:
        why = f"the text has {size_bytes:,} bytes; at most {MAX_TEXT_BYTES:,} are read; cut it"
        return Skip(entry.id, entry.uri, "too_large", why)
    stamp = entry.stamp and Stamp(size_bytes, entry.stamp.mtime_s)
    return replace(entry, text=text, stamp=stamp)


def caption_entries(
    entry: Candidate, values: Mapping[str, object], keys: tuple[str, ...] = TEXT_KEYS
) -> Iterator[Candidate | Skip]:
    """One entry for the text of `values`, or `id#0`, `id#1`, ... for a list of texts.

    Nothing comes if there is no text; a value that is no text is skipped.
    """
    key = next((key for key in keys if values.get(key) is not None), None)
    if key is None:
        return
    value = values[key]
    if isinstance(value, list):
        numbered = [(replace(entry, id=f"{entry.id}#{n}"), one) for n, one in enumerate(value)]
    else:
        numbered = [(entry, value)]
    for own, text in numbered:
        if isinstance(text, str):
            yield with_text(own, text)
        else:
            why = f"its {key} holds {shortened(repr(text))}; a text or a list of texts is accepted"
            yield Skip(own.id, own.uri, "bad_row", why)


def without_text(values: Mapping[str, Json]) -> dict[str, Json]:
    """The values that are no texts of the item."""
    return {key: value for key, value in values.items() if key not in TEXT_KEYS}
