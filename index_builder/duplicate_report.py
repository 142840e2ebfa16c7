"""What a search for near-duplicates found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from index_builder.items import Json

Method = Literal["exact", "neighbours"]


@dataclass(frozen=True)
class Duplicate:
    """One item of a group.

    Attributes:
        id: its id.
        score: dot product with the item to keep, float32; 1 or a little off for that one itself.
        uri: where the original is.
        size_bytes: length of the original.
        width: of the picture, in pixels; `None` if it is none, or cannot be read now.
        height: the same.
        same_bytes: whether its original is, byte for byte, that of the item to keep.
        keep: whether this is the item to keep: the one of most pixels, of equals that of most
            bytes, of equals the first by id.
    """

    id: str
    score: float
    uri: str
    size_bytes: int
    width: int | None
    height: int | None
    same_bytes: bool
    keep: bool


@dataclass(frozen=True)
class DuplicateGroup:
    """Items that belong together; the one to keep first, then by score, then by id."""

    items: tuple[Duplicate, ...]


@dataclass(frozen=True)
class DuplicateReport:
    """What was found.

    Attributes:
        gallery: name of the gallery.
        version: the version looked at.
        threshold: as asked for.
        method: `exact` if every pair was looked at, else `neighbours`.
        num_items: items of the gallery.
        num_pairs: pairs at or above the threshold; with `neighbours`, mostly seen from both sides.
        num_groups: all groups, also those left out.
        num_extra: items of all groups without one of each.
        groups: the largest first, equal ones by the first id.
    """

    gallery: str
    version: str
    threshold: float
    method: Method
    num_items: int
    num_pairs: int
    num_groups: int
    num_extra: int
    groups: tuple[DuplicateGroup, ...]

    def to_json(self) -> dict[str, Json]:
        """What `cots index duplicates --json` prints; `docs/duplicates.md` describes it."""
        values: dict[str, Json] = asdict(self)
        groups: list[Json] = [
            {
                "size": len(group.items),
                "keep": group.items[0].id,
                "same_bytes": all(item.same_bytes for item in group.items),
                "items": [asdict(item) for item in group.items],
            }
            for group in self.groups
        ]
        return {**values, "groups": groups}
