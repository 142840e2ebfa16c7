"""Galleries of given vectors and items, without pictures: local, and in Milvus Lite."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from cots_model.videos import NUM_FRAMES
from index_builder.items import Item, write_items
from index_builder.lock import builder_lock
from index_builder.manifest import (
    FORMAT_VERSION,
    FRAME_TIMES_FILE,
    FRAMES_FILE,
    INDEX_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    VECTORS_FILE,
    IndexInfo,
    Manifest,
    Modality,
    Recipe,
    sha256_of,
    version_files,
)
from index_builder.publish import Pointer, new_version_name, publish, start_partial


def unit_vectors(count: int, dim: int = 16, *, seed: int = 0) -> np.ndarray:
    """Random unit rows `[N,E]`, float32."""
    vectors_NE = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)


def plain_items(ids: Sequence[str], **values: object) -> list[Item]:
    """Items of these ids that are nowhere."""
    return [
        Item(
            id=item_id,
            uri=f"file:///nowhere/{number}",
            size_bytes=number,
            mtime_s=1.5 + number / 3,
            sha256=hashlib.sha256(item_id.encode()).hexdigest(),
            **values,
        )
        for number, item_id in enumerate(ids)
    ]


def publish_gallery(
    root: Path,
    vectors_NE: np.ndarray,
    items: Sequence[Item],
    *,
    modality: Modality = "image",
    fingerprint: str = "f" * 64,
    source: str = "/nowhere",
    frames_NFE: np.ndarray | None = None,
    times_NF: np.ndarray | None = None,
) -> Path:
    """Publish a flat gallery; items come sorted by id. Files that nothing is given for are empty.

    Of a video gallery without frames, each is 16 times the vector itself.
    """
    assert [item.id for item in items] == sorted({item.id for item in items})
    vectors_NE = vectors_NE.astype(np.float32)
    version = new_version_name()
    with builder_lock(root):
        folder = start_partial(root, version)
        np.save(folder / VECTORS_FILE, vectors_NE)
        index = faiss.IndexFlatIP(vectors_NE.shape[1])
        index.add(vectors_NE)
        faiss.write_index(index, str(folder / INDEX_FILE))
        write_items(items, folder / ITEMS_FILE)
        if modality == "video":
            if frames_NFE is None or times_NF is None:
                frames_NFE = np.repeat(vectors_NE[:, None], NUM_FRAMES, axis=1)
                times_NF = np.tile(np.arange(NUM_FRAMES), (len(items), 1))
            np.save(folder / FRAMES_FILE, frames_NFE.astype(np.float16))
            np.save(folder / FRAME_TIMES_FILE, times_NF.astype(np.float64))
        names = version_files(modality, "flat")
        for name in names:
            (folder / name).touch()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            version=version,
            modality=modality,
            dim=vectors_NE.shape[1],
            count=len(items),
            index=IndexInfo(kind="flat"),
            model_fingerprint=fingerprint,
            model_name="tiny",
            created="2026-01-01T00:00:00+00:00",
            files={name: sha256_of(folder / name) for name in names},
            skipped={},
            source=source,
            roots=(source,),
            recipe=Recipe(sources=(source,)),
        )
        data = manifest.to_bytes()
        (folder / MANIFEST_FILE).write_bytes(data)
        publish(root, folder, Pointer(version, hashlib.sha256(data).hexdigest()))
    return root
