"""Vectors as stored, queries, and the answer that a plain sort gives."""

from pathlib import Path

import numpy as np
import pytest

from index_builder.indexes.base import IndexRequest
from index_builder.indexes.build import build_index
from index_builder.indexes.exact import exact_scores
from index_builder.manifest import IndexInfo, VectorType
from index_builder.vectors import Rows, StoredVectors, Vectors, open_vectors, write_vectors


def unit(vectors: np.ndarray) -> Vectors:
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_unit(count: int, dim: int, seed: int = 0) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


def clustered(count: int, dim: int = 32, seed: int = 0) -> Vectors:
    """Vectors around a hundred centres, the same for each seed."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((100, dim))
    noise = rng.standard_normal((count, dim))
    return unit(centres[rng.integers(0, 100, count)] + 0.6 * noise)


def stored(vectors_NE: Vectors, path: Path, vector_type: VectorType = "float32") -> StoredVectors:
    """Write the vectors, and open what was written."""
    info = write_vectors(path, lambda: iter([vectors_NE]), vectors_NE.shape, vector_type)
    return open_vectors(path, vectors_NE.shape, info)


def built(vectors: StoredVectors, path: Path, kind: str = "flat") -> IndexInfo:
    return build_index(IndexRequest(kind=kind), vectors, path)


def reference(query_QE: Vectors, vectors: StoredVectors, k: int) -> tuple[Vectors, Rows]:
    """All exact scores, sorted: best first, equal ones by row."""
    [vectors_NE] = vectors.blocks(vectors.shape[0])
    scores_QN = np.stack([exact_scores(query_E, vectors_NE) for query_E in query_QE])
    rows_QK = np.stack([np.lexsort((np.arange(len(s)), -s))[:k] for s in scores_QN])
    return np.take_along_axis(scores_QN, rows_QK, 1), rows_QK


@pytest.fixture(scope="session")
def gallery_vectors(tmp_path_factory: pytest.TempPathFactory) -> StoredVectors:
    """6,000 clustered vectors of 32."""
    return stored(clustered(6000), tmp_path_factory.mktemp("vectors") / "v.npy")
