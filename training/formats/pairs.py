"""Folders and tar shards, where the captions lie beside the pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

from index_builder.sources.entry import Skip, Source
from index_builder.sources.open import open_source
from training.example import Example
from training.formats.entries import clean_captions

log = logging.getLogger(__name__)

_LISTED = 5


def read_pairs(path: str) -> list[Example]:
    """All pictures with captions of a folder (`name.jpg` + `name.txt|json`) or of tar shards.

    Raises:
        InputError: if nothing is there, or it cannot be read.
    """
    return list(iterate_pairs(open_source([path]), label=path))


def iterate_pairs(source: Source, *, label: str, quiet: bool = False) -> Iterator[Example]:
    """Pictures with captions as the source yields them; what is left out is counted in the log.

    Args:
        source: as `index_builder.sources.open` gives it.
        label: its name in the log.
        quiet: log nothing, for a source that is read again and again.
    """
    num_silent, skips = 0, []
    for item in source.read():
        if isinstance(item, Skip):
            skips.append(item)
            continue
        captions = clean_captions(_values(item.metadata))
        if captions:
            yield Example(item.id, item.location, captions)
        else:
            num_silent += 1
    if not quiet:
        _report(label, num_silent, skips, source.counts.first_bad_sidecar)


def _values(metadata: Mapping[str, object]) -> Sequence[object]:
    value = metadata.get("captions", metadata.get("caption"))
    return value if isinstance(value, list) else [value]


def _report(label: str, num_silent: int, skips: list[Skip], bad_sidecar: str | None) -> None:
    num_left_out = num_silent + len(skips)
    if not num_left_out:
        return
    shown = [f"{skip.id} ({skip.reason}: {skip.message})" for skip in skips[:_LISTED]]
    if bad_sidecar:
        shown.append(f"first unreadable sidecar: {bad_sidecar}")
    log.warning(
        "source %s: %d samples without picture or caption%s",
        label,
        num_left_out,
        "; " + "; ".join(shown) if shown else "",
    )
