"""Exact search: against plain NumPy, with ties wherever they can hurt."""

import numpy as np
import pytest

from cots_model.errors import GalleryError
from index_builder.indexes.exact import (
    build_flat,
    exact_scores,
    index_vectors,
    open_flat,
)
from index_builder.vectors import StoredVectors, Vectors


def unit(vectors: np.ndarray) -> Vectors:
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def opened(vectors_NE: Vectors, tmp_path):
    build_flat(iter([vectors_NE[:7], vectors_NE[7:]]), vectors_NE.shape[1], tmp_path / "i.faiss")
    return open_flat(tmp_path / "i.faiss", StoredVectors(vectors_NE))


def reference(query_QE: Vectors, vectors_NE: Vectors, k: int):
    scores_QN = (query_QE.astype(np.float64) @ vectors_NE.T.astype(np.float64)).astype(np.float32)
    rows = [sorted(range(len(s)), key=lambda row: (-s[row], row))[:k] for s in scores_QN]
    return np.take_along_axis(scores_QN, np.array(rows), 1), np.array(rows)


@pytest.mark.parametrize("num_queries", [1, 3, 64])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_exact_index_agrees_with_sorted_dot_products(tmp_path, num_queries, k):
    rng = np.random.default_rng(k)
    vectors_NE = unit(rng.standard_normal((2000, 64)))
    query_QE = unit(rng.standard_normal((num_queries, 64)))
    scores_QK, rows_QK = opened(vectors_NE, tmp_path).search(query_QE, k)
    expected_scores, expected_rows = reference(query_QE, vectors_NE, k)
    assert np.array_equal(rows_QK, expected_rows)
    np.testing.assert_allclose(scores_QK, expected_scores, rtol=0, atol=1e-7)
    assert scores_QK.dtype == np.float32
    assert rows_QK.dtype == np.int64


@pytest.mark.parametrize("k", [1, 5, 33, 700, 999, 1000])
def test_exact_index_breaks_ties_by_row_across_the_boundary(tmp_path, k):
    rng = np.random.default_rng(1)
    few_NE = unit(rng.standard_normal((3, 48)))
    vectors_NE = few_NE[rng.integers(0, 3, 1000)]  # some 330 copies of each of three vectors
    query_QE = unit(rng.standard_normal((40, 48)))
    scores_QK, rows_QK = opened(vectors_NE, tmp_path).search(query_QE, k)
    for query_E, scores_K, rows_K in zip(query_QE, scores_QK, rows_QK, strict=True):
        scores_N = exact_scores(query_E, vectors_NE)
        assert len(np.unique(scores_N)) == 3
        expected = np.lexsort((np.arange(1000), -scores_N))[:k]
        assert np.array_equal(rows_K, expected)
        assert np.array_equal(scores_K, scores_N[expected])


def test_exact_index_gives_the_same_scores_alone_and_in_a_batch(tmp_path):
    rng = np.random.default_rng(2)
    index = opened(unit(rng.standard_normal((500, 256))), tmp_path)
    query_QE = unit(rng.standard_normal((50, 256)))
    together, rows = index.search(query_QE, 20)
    for number in range(50):
        alone, rows_alone = index.search(query_QE[number : number + 1], 20)
        assert np.array_equal(alone[0], together[number])
        assert np.array_equal(rows_alone[0], rows[number])


def test_exact_index_caps_k_at_its_size(tmp_path):
    vectors_NE = unit(np.eye(9, 16) + 0.1)
    scores_QK, rows_QK = opened(vectors_NE, tmp_path).search(vectors_NE[:1], 100)
    assert scores_QK.shape == rows_QK.shape == (1, 9)
    assert sorted(rows_QK[0]) == list(range(9))


def test_index_vectors_notices_one_changed_number(tmp_path):
    vectors_NE = unit(np.random.default_rng(3).standard_normal((50, 16)))
    opened(vectors_NE, tmp_path)
    assert index_vectors(tmp_path / "i.faiss", StoredVectors(vectors_NE))
    vectors_NE[49, 15] += 1e-3
    assert not index_vectors(tmp_path / "i.faiss", StoredVectors(vectors_NE))


def test_open_flat_refuses_an_index_that_does_not_fit(tmp_path):
    vectors_NE = unit(np.random.default_rng(4).standard_normal((50, 16)))
    opened(vectors_NE, tmp_path)
    with pytest.raises(GalleryError, match="does not fit"):
        open_flat(tmp_path / "i.faiss", StoredVectors(vectors_NE[:20]))
    (tmp_path / "junk.faiss").write_bytes(b"x" * (vectors_NE.nbytes + 45))
    with pytest.raises(GalleryError, match=r"junk\.faiss is damaged"):
        open_flat(tmp_path / "junk.faiss", StoredVectors(vectors_NE))
    with pytest.raises(GalleryError, match="not a flat index"):
        open_flat(tmp_path / "i.faiss", StoredVectors(vectors_NE.reshape(25, 32)))
