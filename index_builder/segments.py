"""Ids of the segments of a video: `clip.mp4#t=30,60`, as media fragments are written."""

from __future__ import annotations

import re

_TIMES = re.compile(r"[0-9.]+,[0-9.]+")


def segment_id(entry_id: str, start_s: float, end_s: float) -> str:
    """Id of a segment of a video."""
    return f"{segment_prefix(entry_id)}{_seconds(start_s)},{_seconds(end_s)}"


def segment_prefix(entry_id: str) -> str:
    """What the ids of all segments of a video begin with."""
    return f"{entry_id}#t="


def is_segment_of(entry_id: str, item_id: str) -> bool:
    """Whether an id is that of a segment of a video, and not of one whose name goes on."""
    prefix = segment_prefix(entry_id)
    return item_id.startswith(prefix) and bool(_TIMES.fullmatch(item_id, len(prefix)))


def _seconds(value_s: float) -> str:
    return f"{value_s:.3f}".rstrip("0").rstrip(".")
