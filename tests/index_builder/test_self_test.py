"""The self-test of an opened version passes what searches rightly, and nothing else."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from index_builder.gallery import Gallery
from index_builder.indexes.base import IndexRequest
from index_builder.indexes.build import build_index
from index_builder.indexes.open import open_index
from index_builder.items import Item
from index_builder.manifest import INDEX_FILE, ITEMS_FILE, VECTORS_FILE
from index_builder.self_test import SelfTestError, self_test
from index_builder.vectors import open_vectors, write_vectors
from index_builder.version import read_manifest
from index_builder.version_memory import version_bytes
from tests.index_builder.stores import publish_gallery

N, E = 3000, 32


def unit(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def items_of(count: int) -> list[Item]:
    return [
        Item(f"{n:05d}.jpg", f"file:///nowhere/{n:05d}.jpg", 1, 1.0, f"{n:064x}", metadata={"n": n})
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def vectors_NE() -> np.ndarray:
    return unit((N, E))


@pytest.fixture
def gallery(vectors_NE, tmp_path) -> Gallery:
    return Gallery.open(publish_gallery(tmp_path / "g", vectors_NE, items_of(N)))


def with_parts(gallery: Gallery, **parts) -> Gallery:
    own = {"vectors": gallery.vectors, "items": gallery._items, "index": gallery._index}
    return Gallery(gallery.root, parts.pop("manifest", gallery.manifest), **{**own, **parts})


def test_good_gallery_passes(gallery) -> None:
    self_test(gallery, unit((2, E), seed=1))


@pytest.mark.parametrize("stored", ["float16", "int8"])
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivfpq"])
def test_every_index_and_storage_passes(gallery, vectors_NE, tmp_path, kind, stored) -> None:
    path = tmp_path / VECTORS_FILE
    info = write_vectors(path, lambda: iter([vectors_NE]), (N, E), stored)
    vectors = open_vectors(path, (N, E), info)
    request = IndexRequest(kind=kind, vectors=stored, device="cpu")
    index_info = build_index(request, vectors, tmp_path / INDEX_FILE)
    index = open_index(tmp_path / INDEX_FILE, index_info, vectors, device="cpu")
    manifest = gallery.manifest.model_copy(update={"vectors": info, "index": index_info})
    self_test(with_parts(gallery, vectors=vectors, index=index, manifest=manifest))


def test_copies_of_a_picture_pass(tmp_path) -> None:
    same_NE = np.repeat(unit((4, E)), 40, axis=0)
    self_test(Gallery.open(publish_gallery(tmp_path / "g", same_NE, items_of(160))))


def test_one_item_passes(tmp_path) -> None:
    self_test(Gallery.open(publish_gallery(tmp_path / "g", unit((1, E)), items_of(1))))


def test_index_of_other_vectors_fails(gallery, tmp_path) -> None:
    other = Gallery.open(publish_gallery(tmp_path / "h", unit((N, E), seed=5), items_of(N)))
    with pytest.raises(SelfTestError, match="come back first, and 16 must"):
        self_test(with_parts(gallery, index=other._index))


def test_approximate_index_of_other_vectors_fails(gallery, vectors_NE, tmp_path) -> None:
    vectors = gallery.vectors
    for kind in ("hnsw", "ivf", "ivfpq"):
        other = Gallery.open(publish_gallery(tmp_path / kind, unit((N, E), seed=5), items_of(N)))
        path = tmp_path / f"{kind}.faiss"
        info = build_index(IndexRequest(kind=kind, device="cpu"), other.vectors, path)
        index = open_index(path, info, vectors, device="cpu")
        with pytest.raises(SelfTestError, match="come back first"):
            self_test(with_parts(gallery, index=index))


def test_vectors_of_another_length_fail(vectors_NE, tmp_path) -> None:
    for scale in (0.5, float("nan")):
        root = publish_gallery(tmp_path / str(scale), vectors_NE * scale, items_of(N))
        with pytest.raises(SelfTestError, match="instead of 1"):
            self_test(Gallery.open(root))


def test_items_in_another_order_fail(gallery) -> None:
    class Reversed:
        def __init__(self, items):
            self._items = items

        def __len__(self):
            return len(self._items)

        def items(self, rows):
            return self._items.items([N - 1 - row for row in rows])

        def find(self, item_id):
            return self._items.find(item_id)

        def metadata_columns(self):
            return self._items.metadata_columns()

    with pytest.raises(SelfTestError, match="another row"):
        self_test(with_parts(gallery, items=Reversed(gallery._items)))


def test_model_of_another_width_fails(gallery) -> None:
    with pytest.raises(SelfTestError, match="32 dimensions and the model's 64"):
        self_test(gallery, unit((1, 64)))


def test_memory_of_a_version_is_not_underestimated(gallery) -> None:
    folder, manifest = read_manifest(gallery.root)
    table = pq.read_table(folder / ITEMS_FILE)
    held = N * E * 4 + table.nbytes
    assert held <= version_bytes(folder, manifest) <= 3 * held + (1 << 20)
