"""Galleries of videos and texts, written by the functions of the format and published."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cots_model.encoder import Encoder
from cots_model.videos import NUM_FRAMES, VideoClip, iter_clips
from index_builder.content import file_uri
from index_builder.indexes.base import IndexRequest
from index_builder.indexes.build import build_index
from index_builder.items import Item, write_items
from index_builder.manifest import (
    EXCLUDED_FILE,
    FORMAT_VERSION,
    FRAME_TIMES_FILE,
    FRAMES_FILE,
    INDEX_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    SKIPPED_FILE,
    VECTORS_FILE,
    Manifest,
    Recipe,
    sha256_of,
    version_files,
)
from index_builder.publish import Pointer, new_version_name, publish
from index_builder.vectors import StoredVectors


def publish_gallery(
    root: Path,
    encoder: Encoder,
    items: Sequence[Item],
    vectors_NE: np.ndarray,
    *,
    source: Path,
    frames_NFE: np.ndarray | None = None,
    times_NF: np.ndarray | None = None,
) -> Path:
    """Write and publish a version of a text gallery, or of a video gallery if there are frames."""
    order = sorted(range(len(items)), key=lambda row: items[row].id)
    version = new_version_name()
    folder = root / "versions" / f".partial-{version}"
    folder.mkdir(parents=True)
    np.save(folder / VECTORS_FILE, vectors_NE[order].astype(np.float32))
    vectors = StoredVectors(vectors_NE[order].astype(np.float32))
    index = build_index(IndexRequest(), vectors, folder / INDEX_FILE)
    write_items([items[row] for row in order], folder / ITEMS_FILE)
    (folder / SKIPPED_FILE).touch()
    (folder / EXCLUDED_FILE).touch()
    if frames_NFE is not None and times_NF is not None:
        np.save(folder / FRAMES_FILE, frames_NFE[order].astype(np.float16))
        np.save(folder / FRAME_TIMES_FILE, times_NF[order].astype(np.float64))
    modality = "text" if frames_NFE is None else "video"
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        version=version,
        modality=modality,
        dim=encoder.dim,
        count=len(items),
        index=index,
        model_fingerprint=encoder.fingerprint,
        model_name=encoder.name,
        created="2026-01-01T00:00:00+00:00",
        files={name: sha256_of(folder / name) for name in version_files(modality, "flat")},
        skipped={},
        source=str(source),
        roots=(str(source),),
        recipe=Recipe(sources=(str(source),)),
    )
    data = manifest.to_bytes()
    (folder / MANIFEST_FILE).write_bytes(data)
    publish(root, folder, Pointer(version, hashlib.sha256(data).hexdigest()))
    return root


def publish_videos(
    root: Path, encoder: Encoder, folder: Path, *, segment_s: float | None = None
) -> Path:
    """A gallery of all videos of a folder, as a build makes it."""
    items, frames, times = [], [], []
    for path in sorted(folder.iterdir()):
        for clip in iter_clips(path, segment_s=segment_s):
            items.append(video_item(path, clip))
            frames.append(encoder.encode_images(clip.frames))
            times.append(clip.times_s)
    frames_NFE = np.stack(frames)
    mean_NE = frames_NFE.mean(axis=1)
    return publish_gallery(
        root,
        encoder,
        items,
        mean_NE / np.linalg.norm(mean_NE, axis=1, keepdims=True),
        source=folder,
        frames_NFE=frames_NFE,
        times_NF=np.array(times).reshape(-1, NUM_FRAMES),
    )


def video_item(path: Path, clip: VideoClip) -> Item:
    """The item of a whole video, or of a segment."""
    part = "" if clip.start_s is None else f"#t={clip.start_s:g},{clip.end_s:g}"
    return Item(
        id=path.name + part,
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
    return publish_gallery(root, encoder, items, encoder.encode_texts(texts), source=source)
