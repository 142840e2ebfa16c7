"""Checking a published version: every file's hash, and that the files agree with each other."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from cots_model.errors import GalleryError
from index_builder.gallery import Gallery, read_manifest
from index_builder.indexes.exact import index_vectors
from index_builder.manifest import (
    INDEX_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    VECTORS_FILE,
    Manifest,
    check_file,
)
from index_builder.publish import POINTER, read_pointer


def verify_gallery(root: Path) -> dict[str, str | None]:
    """Check every file of the published version, and that they agree with each other.

    Returns:
        for each file what is wrong with it, or `None`.

    Raises:
        GalleryError: if `root` is no gallery, or no build of it was ever finished.
    """
    try:
        pointer = read_pointer(root)
    except GalleryError as err:
        if not (root / POINTER).is_file():
            raise
        return {POINTER: str(err)}
    try:
        folder, manifest = read_manifest(root)
    except GalleryError as err:
        return {f"versions/{pointer.version}/{MANIFEST_FILE}": str(err)}
    problems: dict[str, str | None] = {
        name: check_file(folder / name, expected) for name, expected in manifest.files.items()
    }
    if not any(problems.values()):
        if manifest.index.kind == "milvus":
            problems.update(_collection(manifest))
        else:
            problems.update(_disagreements(root, folder))
    return {MANIFEST_FILE: None, **problems}


def _disagreements(root: Path, folder: Path) -> dict[str, str | None]:
    """Faults that checksums cannot show: a builder that wrote the wrong thing."""
    try:
        gallery = Gallery.open(root, verify_checksums=False)
    except GalleryError as err:
        return {"contents": str(err)}
    vectors = gallery.vectors
    ids = gallery.ids()
    found: dict[str, str | None] = {}
    if any(first >= second for first, second in pairwise(ids)):
        found[ITEMS_FILE] = "its ids are not sorted and unique"
    norms = [np.linalg.norm(block_NE, axis=1) for block_NE in vectors.blocks()]
    if not np.allclose(np.concatenate(norms), 1.0, atol=1e-3):
        found[VECTORS_FILE] = "its rows are not unit vectors"
    if not index_vectors(folder / INDEX_FILE, vectors):
        found[INDEX_FILE] = f"it does not hold the vectors of {VECTORS_FILE}"
    return found


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
