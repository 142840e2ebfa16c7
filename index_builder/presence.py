"""Whether originals are where they were: a file that is gone, told from a source that is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from cots_model.errors import CotsError
from index_builder.listing import PartSpec, read_listing
from index_builder.parts import Part
from index_builder.sources.entry import Candidate, Skip

GONE = frozenset({"missing", "broken_symlink", "not_a_file"})
"""Reasons to skip what is no longer there."""

OUT_OF_REACH = frozenset({"unreadable", "timeout", "fetch_timeout"})
"""Reasons to skip what may be there and could not be read this time."""


class Roots:
    """Local roots, remembered as they were when first seen: an empty mount point is another one."""

    def __init__(self, roots: Iterable[str]) -> None:
        """Look at each root now."""
        self._seen: dict[str, tuple[int, int] | None] = {}
        for root in roots:
            self.see(root)

    def see(self, root: str | None) -> None:
        """Remember another root, unless it is a url."""
        if root is not None and root not in self._seen and "://" not in root:
            self._seen[root] = _folder_identity(root)

    def check(self) -> None:
        """Stop where a root has gone.

        Raises:
            CotsError: if a root is no longer there, or another folder is in its place.
        """
        check_roots(self._seen)
        for root, known in self._seen.items():
            if known is not None and _folder_identity(root) != known:
                raise _vanished(root)


def check_roots(roots: Iterable[str]) -> None:
    """Stop where a root has gone.

    Raises:
        CotsError: if a local root is no longer there.
    """
    for root in roots:
        if "://" not in root and not os.path.exists(root):
            raise _vanished(root)


def is_out_of_reach(value: Candidate | Skip, skip: Skip) -> bool:
    """Whether an original may be there although it was skipped; also if its shard lost its end."""
    in_shard = isinstance(value, Candidate) and value.location.offset_bytes is not None
    return skip.reason in OUT_OF_REACH or (skip.reason == "truncated" and in_shard)


def is_back(part: Part, spec: PartSpec) -> bool:
    """Whether a finished part has skipped a local original that can be read now."""
    skips = zip(part.skip_offsets, part.skips(), strict=True)
    offsets = {offset for offset, skip in skips if skip.reason in GONE | OUT_OF_REACH}
    return bool(offsets) and any(
        _is_readable(entry.value)
        for offset, entry in enumerate(read_listing(spec.path))
        if offset in offsets and isinstance(entry.value, Candidate)
    )


def gone_rows(part: Part, listing: Path) -> list[int]:
    """Rows of the published version whose original is listed in a part, and was gone when read.

    Args:
        part: a finished part.
        listing: the file of its entries.
    """
    skips = zip(part.skip_offsets, part.skips(), strict=True)
    offsets = {offset for offset, skip in skips if skip.reason in GONE}
    if not offsets:
        return []
    entries = enumerate(read_listing(listing))
    return [row for offset, entry in entries if offset in offsets for row in entry.old_rows]


def _is_readable(candidate: Candidate) -> bool:
    path = candidate.location.path
    return "://" not in path and os.path.isfile(path) and os.access(path, os.R_OK)


def _folder_identity(root: str) -> tuple[int, int] | None:
    """Device and number of a folder; `None` of a file, which may be replaced."""
    try:
        status = os.stat(root)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _vanished(root: str) -> CotsError:
    return CotsError(
        f"{root} is no longer there as it was (unmounted?), so the build stopped and nothing "
        "was published; bring it back and run the same command to go on"
    )
