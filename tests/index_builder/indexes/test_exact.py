"""Exact search: against a plain sort, however vectors are stored, with ties where they hurt."""

import threading

import faiss
import numpy as np
import pytest

from index_builder.indexes.cpu import CpuProposer
from index_builder.indexes.effort import Effort
from index_builder.indexes.exact import ExactIndex, exact_scores
from index_builder.indexes.open import open_index
from index_builder.indexes.scan import VectorScan
from index_builder.indexes.threads import product_threads, threads
from index_builder.vectors import StoredVectors
from tests.index_builder.indexes.conftest import built, random_unit, reference, stored, unit

TYPES = ("float32", "float16", "int8")


def opened(vectors_NE, tmp_path, vector_type="float32"):
    vectors = stored(vectors_NE, tmp_path / "v.npy", vector_type)
    info = built(vectors, tmp_path / "i.faiss")
    return open_index(tmp_path / "i.faiss", info, vectors), vectors


@pytest.mark.parametrize("vector_type", TYPES)
@pytest.mark.parametrize(("k", "num_queries"), [(1, 1), (10, 64), (300, 3)])
def test_exact_index_agrees_with_sorted_exact_scores(tmp_path, k, num_queries, vector_type):
    index, vectors = opened(random_unit(2000, 64, k), tmp_path, vector_type)
    query_QE = random_unit(num_queries, 64, 99)
    scores_QK, rows_QK = index.search(query_QE, k)
    expected_scores, expected_rows = reference(query_QE, vectors, k)
    assert np.array_equal(rows_QK, expected_rows)
    assert np.array_equal(scores_QK, expected_scores)
    assert scores_QK.dtype == np.float32
    assert rows_QK.dtype == np.int64


@pytest.mark.parametrize("vector_type", TYPES)
@pytest.mark.parametrize("dim", [1, 3, 15, 16, 17, 32, 100, 256])
def test_exact_index_is_exact_in_every_width(tmp_path, dim, vector_type):
    """FAISS has ways of its own for widths that suit its registers."""
    index, vectors = opened(random_unit(1000, dim, dim), tmp_path, vector_type)
    query_QE = random_unit(20, dim, 1)
    scores_QK, rows_QK = index.search(query_QE, 10)
    expected_scores, expected_rows = reference(query_QE, vectors, 10)
    assert np.array_equal(scores_QK, expected_scores)
    assert np.array_equal(rows_QK, expected_rows)


@pytest.mark.parametrize("vector_type", TYPES)
@pytest.mark.parametrize("k", [1, 33, 700, 999, 1000])
def test_exact_index_breaks_ties_by_row_across_the_boundary(tmp_path, k, vector_type):
    rng = np.random.default_rng(1)
    few_NE = random_unit(3, 48, 1)
    vectors_NE = few_NE[rng.integers(0, 3, 1000)]  # some 330 copies of each of three vectors
    index, vectors = opened(vectors_NE, tmp_path, vector_type)
    query_QE = random_unit(40, 48, 2)
    scores_QK, rows_QK = index.search(query_QE, k)
    expected_scores, expected_rows = reference(query_QE, vectors, k)
    assert len(np.unique(reference(query_QE[:1], vectors, 1000)[0])) == 3
    assert np.array_equal(rows_QK, expected_rows)
    assert np.array_equal(scores_QK, expected_scores)


@pytest.mark.parametrize("vector_type", TYPES)
def test_exact_index_gives_the_same_scores_alone_and_in_a_batch(tmp_path, vector_type):
    index, _ = opened(random_unit(500, 256), tmp_path, vector_type)
    query_QE = random_unit(50, 256, 1)
    together, rows = index.search(query_QE, 20)
    for number in range(50):
        alone, rows_alone = index.search(query_QE[number : number + 1], 20)
        assert np.array_equal(alone[0], together[number])
        assert np.array_equal(rows_alone[0], rows[number])


def test_exact_index_caps_k_at_its_size(tmp_path):
    vectors_NE = unit(np.eye(9, 16) + 0.1)
    index, _ = opened(vectors_NE, tmp_path)
    scores_QK, rows_QK = index.search(vectors_NE[:1], 100)
    assert scores_QK.shape == rows_QK.shape == (1, 9)
    assert sorted(rows_QK[0]) == list(range(9))


@pytest.mark.parametrize("vector_type", TYPES)
def test_vector_scan_finds_the_same_in_blocks_as_in_one(tmp_path, vector_type, monkeypatch):
    monkeypatch.setattr("index_builder.indexes.scan.BLOCK", 300)
    monkeypatch.setattr("index_builder.indexes.scan._CONVERTED_BLOCK", 300)
    vectors = stored(random_unit(1000, 32), tmp_path / "v.npy", vector_type)
    query_QE = random_unit(7, 32, 1)
    scan = ExactIndex(VectorScan(vectors), vectors)
    for k in (1, 290, 310, 1000):
        scores_QK, rows_QK = scan.search(query_QE, k)
        expected_scores, expected_rows = reference(query_QE, vectors, k)
        assert np.array_equal(rows_QK, expected_rows)
        assert np.array_equal(scores_QK, expected_scores)


def test_exact_scores_do_not_depend_on_their_neighbours():
    vectors_NE = random_unit(100, 256)
    query_E = random_unit(1, 256, 1)[0]
    together = exact_scores(query_E, vectors_NE)
    alone = [exact_scores(query_E, vectors_NE[row : row + 1])[0] for row in range(100)]
    assert np.array_equal(together, alone)


def test_exact_index_takes_vectors_of_any_length(tmp_path):
    """The bound on rounding follows the longest."""
    long_NE = 40 * random_unit(500, 32)
    vectors = StoredVectors(long_NE)
    scan = ExactIndex(VectorScan(vectors), vectors)
    query_QE = 7 * random_unit(5, 32, 1)
    assert np.array_equal(scan.search(query_QE, 20)[1], reference(query_QE, vectors, 20)[1])


@pytest.mark.parametrize(("num_queries", "most"), [(1, 1), (2, 2), (3, 3), (19, 3)])
@pytest.mark.parametrize("how", ["index", "scan"])
def test_a_query_gets_one_thread_at_most(tmp_path, monkeypatch, how, num_queries, most):
    vectors = stored(random_unit(50, 8), tmp_path / "v.npy")
    used = []

    class Index:
        def search(self, query_QE, width, params):
            used.append(faiss.omp_get_max_threads())
            return np.empty((len(query_QE), width)), np.empty((len(query_QE), width))

    def knn(*args, real=faiss.knn, **options):
        used.append(faiss.omp_get_max_threads())
        return real(*args, **options)

    monkeypatch.setattr(faiss, "knn", knn)
    proposer = CpuProposer(Index()) if how == "index" else VectorScan(vectors)
    with threads(3):
        proposer.propose(random_unit(num_queries, 8), 5, Effort())
        assert faiss.omp_get_max_threads() == 3
    assert used == [most]


@pytest.mark.parametrize("vector_type", TYPES)
@pytest.mark.parametrize("k", [1, 10, 400, 3000])
def test_many_queries_together_find_what_each_finds_alone(tmp_path, k, vector_type):
    vectors_NE = np.concatenate([random_unit(2000, 128, 3), random_unit(500, 128, 3)])  # ties
    index, _ = opened(vectors_NE, tmp_path, vector_type)
    query_QE = np.concatenate([random_unit(38, 128, 4), vectors_NE[:2]])
    scores_QK, rows_QK = index.search(query_QE, k)
    for query, query_E in enumerate(query_QE):
        scores_1K, rows_1K = index.search(query_E[None], k)
        assert np.array_equal(scores_QK[query], scores_1K[0])
        assert np.array_equal(rows_QK[query], rows_1K[0])


@pytest.mark.parametrize(
    ("num_queries", "dim", "product"),
    [(1, 256, False), (15, 256, False), (16, 256, True), (64, 256, True), (16, 128, False)],
)
def test_many_queries_are_a_product_and_few_are_not(num_queries, dim, product) -> None:
    """As FAISS counts them: a product sums in another order, and has all threads."""
    vectors_NE, query_QE = random_unit(3000, dim), random_unit(num_queries, dim, 1)

    def scores_N(some_QE: np.ndarray) -> np.ndarray:
        found_QN, rows_QN = faiss.knn(some_QE, vectors_NE, 3000, metric=faiss.METRIC_INNER_PRODUCT)
        return found_QN[0, np.argsort(rows_QN[0])]

    with threads(100):
        with product_threads(1, dim):
            alone_N = scores_N(query_QE[:1])
        with product_threads(num_queries, dim):
            assert (faiss.omp_get_max_threads() == 100) == product
            found_N = scores_N(query_QE)
    assert np.array_equal(found_N, alone_N) != product


def test_one_product_at_a_time() -> None:
    inside = threading.Event()

    def other() -> None:
        with product_threads(64, 256):
            inside.set()

    waiting = threading.Thread(target=other)
    with product_threads(64, 256):
        waiting.start()
        with product_threads(1, 256):  # is none
            assert not inside.wait(0.1)
    waiting.join(10)
    assert inside.is_set()
