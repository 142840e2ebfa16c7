"""Galleries of videos and texts, embedded one by one and not by the builder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cots_model.encoder import Encoder
from cots_model.videos import VideoClip, iter_clips
from index_builder.content import file_uri
from index_builder.items import Item
from index_builder.segments import segment_id
from tests.index_builder.stores import publish_gallery


def publish_videos(
    root: Path, encoder: Encoder, folder: Path, *, segment_s: float | None = None
) -> Path:
    """A gallery of all videos of a folder, as a build makes it."""
    found = [
        (video_item(path, clip), clip)
        for path in folder.iterdir()
        for clip in iter_clips(path, segment_s=segment_s)
    ]
    found.sort(key=lambda pair: pair[0].id)
    frames_NFE = np.stack([encoder.encode_images(clip.frames) for _, clip in found])
    mean_NE = frames_NFE.mean(axis=1)
    return publish_gallery(
        root,
        mean_NE / np.linalg.norm(mean_NE, axis=1, keepdims=True),
        [item for item, _ in found],
        modality="video",
        fingerprint=encoder.fingerprint,
        source=str(folder),
        frames_NFE=frames_NFE,
        times_NF=np.array([clip.times_s for _, clip in found]),
    )


def video_item(path: Path, clip: VideoClip) -> Item:
    """The item of a whole video, or of a segment."""
    whole = clip.start_s is None or clip.end_s is None
    return Item(
        id=path.name if whole else segment_id(path.name, clip.start_s, clip.end_s),
        uri=file_uri(str(path)),
        size_bytes=path.stat().st_size,
        mtime_s=path.stat().st_mtime,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        start_s=clip.start_s,
        end_s=clip.end_s,
        duration_s=clip.duration_s,
    )


def publish_texts(root: Path, encoder: Encoder, texts: Sequence[str], source: Path) -> Path:
    """A gallery of texts that stand in one file, a line each."""
    items = [
        Item(
            id=f"{number:03d}",
            uri=file_uri(str(source), str(number)),
            size_bytes=len(text.encode()),
            mtime_s=0.0,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            text=text,
            metadata={"line": number},
        )
        for number, text in enumerate(texts)
    ]
    return publish_gallery(
        root,
        encoder.encode_texts(texts),
        items,
        modality="text",
        fingerprint=encoder.fingerprint,
        source=str(source),
    )
