"""Checking a published version: every file's hash, and that the files agree with each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from cots_model.errors import GalleryError
from cots_model.videos import NUM_FRAMES
from index_builder.gallery import Gallery
from index_builder.indexes.check import check_index
from index_builder.manifest import (
    EXCLUDED_FILE,
    FRAME_TIMES_FILE,
    FRAMES_FILE,
    INDEX_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    VECTORS_FILE,
    Manifest,
    VectorsInfo,
    check_file,
)
from index_builder.publish import POINTER, Pointer, read_pointer
from index_builder.vectors import NORM_TOLERANCE, VectorRows, Vectors, open_vectors
from index_builder.version import read_excluded, read_manifest

_VIDEO_BLOCK = 1024
_FRAME_TOLERANCE = 2e-3  # of a component: frames are float16


def verify_gallery(
    root: Path, *, progress: Callable[[int], object] = lambda _: None
) -> dict[str, str | None]:
    """Check every file of the published version, and that they agree with each other.

    A version that is replaced meanwhile may be gone half way: then the new one is checked.

    Args:
        root: the gallery.
        progress: called with the size of each file that was hashed.

    Returns:
        for each file what is wrong with it, or `None`.

    Raises:
        GalleryError: if `root` is no gallery, or no build of it was ever finished.
    """
    while True:
        try:
            pointer = read_pointer(root)
        except GalleryError as err:
            if not (root / POINTER).is_file():
                raise
            return {POINTER: str(err)}
        problems = _problems(root, pointer, progress)
        if not any(problems.values()) or read_pointer(root) == pointer:
            return problems


def _problems(
    root: Path, pointer: Pointer, progress: Callable[[int], object]
) -> dict[str, str | None]:
    try:
        folder, manifest = read_manifest(root)
    except GalleryError as err:
        return {f"versions/{pointer.version}/{MANIFEST_FILE}": str(err)}
    problems: dict[str, str | None] = {}
    for name, expected in manifest.files.items():
        problems[name] = check_file(folder / name, expected)
        progress(expected.size_bytes)
    if manifest.count and not any(problems.values()):
        if manifest.index.kind == "milvus":
            problems.update(_collection(manifest))
        else:
            problems.update(_disagreements(root, folder))
    return {MANIFEST_FILE: None, **problems}


def _disagreements(root: Path, folder: Path) -> dict[str, str | None]:
    """Faults that checksums cannot show: a builder that wrote the wrong thing."""
    try:
        gallery = Gallery.open(root, verify_checksums=False, device="cpu")
        manifest = gallery.manifest
        shape = (manifest.count, manifest.dim)
        vectors = open_vectors(folder / VECTORS_FILE, shape, manifest.vectors)
    except GalleryError as err:
        return {"contents": str(err)}
    ids = gallery.ids()
    found: dict[str, str | None] = {}
    if any(first >= second for first, second in pairwise(ids)):
        found[ITEMS_FILE] = "its ids are not sorted and unique"
    norms = [np.linalg.norm(block_NE, axis=1) for block_NE in vectors.blocks()]
    if not np.allclose(np.concatenate(norms), 1.0, atol=NORM_TOLERANCE[manifest.vectors.type]):
        found[VECTORS_FILE] = "its rows are not unit vectors"
    found[INDEX_FILE] = check_index(folder / INDEX_FILE, manifest.index, vectors)
    if manifest.modality == "video":
        problem = _frames_problem(folder, vectors, _tolerance(manifest.vectors))
        if problem:
            found[FRAMES_FILE] = problem
    if set(ids) & read_excluded(folder / EXCLUDED_FILE):
        found[EXCLUDED_FILE] = f"ids that it takes out are in {ITEMS_FILE}"
    return found


def _frames_problem(folder: Path, vectors: VectorRows, tolerance: float) -> str | None:
    """Whether each video's vector is the mean of its frames', as far as float16 tells."""
    frames_NFE = np.load(folder / FRAMES_FILE, mmap_mode="r", allow_pickle=False)
    times_NF = np.load(folder / FRAME_TIMES_FILE, mmap_mode="r", allow_pickle=False)
    num_rows, dim = vectors.shape
    expected = (num_rows, NUM_FRAMES, dim)
    if frames_NFE.shape != expected or times_NF.shape != expected[:2]:
        return f"it holds {frames_NFE.shape} with times {times_NF.shape}; expected {expected}"
    start = 0
    for block_nE in vectors.blocks(_VIDEO_BLOCK):
        frames_nFE = frames_NFE[start : start + len(block_nE)].astype(np.float32)
        if not np.allclose(_unit(frames_nFE.mean(axis=1)), _unit(block_nE), atol=tolerance):
            return f"the means of its frames are not the vectors of {VECTORS_FILE}"
        start += len(block_nE)
    return None


def _unit(vectors_NE: Vectors) -> Vectors:
    unit_NE: Vectors = vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return unit_NE


def _tolerance(vectors: VectorsInfo) -> float:
    """How far a component may be off: by the rounding of the frames, and of int8 vectors."""
    return _FRAME_TOLERANCE + (vectors.scale if vectors.scale < 1 else 0.0)


def _collection(manifest: Manifest) -> dict[str, str | None]:
    """The same of a gallery in Milvus: every row is read back."""
    from index_builder.milvus.open import (
        collection_address,
        content_fingerprint,
        open_collection,
    )

    name = str(collection_address(manifest))
    try:
        found = content_fingerprint(open_collection(manifest), manifest)
    except GalleryError as err:
        return {name: str(err)}
    expected = manifest.index.parameters["fingerprint"]
    same = found == expected
    return {name: None if same else f"its content is {found}, not the {expected} that was exported"}
