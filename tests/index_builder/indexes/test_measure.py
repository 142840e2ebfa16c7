"""Tuning and measuring: on queries of their own, honest about what was not reached."""

import numpy as np
import pytest

from index_builder.indexes.base import IndexRequest
from index_builder.indexes.build import build_index
from index_builder.indexes.effort import Effort, effort_of
from index_builder.indexes.exact import ExactIndex
from index_builder.indexes.measure import (
    QUERY_COSINE,
    Sample,
    ask,
    make_queries,
    make_sample,
    measure,
    tune,
)
from index_builder.indexes.scan import VectorScan
from index_builder.vectors import StoredVectors
from tests.index_builder.indexes.conftest import clustered, random_unit, reference


class Worse:
    """Finds the best rows, but leaves out the first of all in some of the searches."""

    exact = False

    def __init__(self, vectors, share):
        self._exact = ExactIndex(VectorScan(vectors), vectors)
        self._share, self._owed = share, 0.0

    def search(self, query_QE, k):
        scores_QK, rows_QK = self._exact.search(query_QE, k + 1)
        self._owed += self._share
        first = int(self._owed >= 1)
        self._owed -= first
        return scores_QK[:, first : first + k], rows_QK[:, first : first + k]


def test_queries_are_unit_vectors_at_their_cosine_from_the_gallery(gallery_vectors):
    query_QE = make_queries(gallery_vectors, 300)
    assert query_QE.shape == (300, 32)
    assert query_QE.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(query_QE, axis=1), 1, atol=1e-5)
    [vectors_NE] = gallery_vectors.blocks()
    cosine_QN = query_QE @ vectors_NE.T
    assert (np.abs(cosine_QN - QUERY_COSINE).min(axis=1) < 1e-3).all()
    assert cosine_QN.max() < 0.95  # none of them is in the gallery
    assert np.array_equal(query_QE, make_queries(gallery_vectors, 300))


@pytest.mark.parametrize(("count", "dim"), [(1, 8), (2, 1), (5, 3)])
def test_queries_can_be_made_of_very_few_vectors(count, dim):
    query_QE = make_queries(StoredVectors(random_unit(count, dim)), 100)
    assert np.isfinite(query_QE).all()


def test_the_sample_shrinks_with_the_gallery_but_not_below_a_hundred(monkeypatch, gallery_vectors):
    assert len(make_sample(gallery_vectors).query_QE) == 1000
    monkeypatch.setattr("index_builder.indexes.measure._PRODUCTS", 6000 * 32 * 300)
    assert len(make_sample(gallery_vectors).query_QE) == 300
    monkeypatch.setattr("index_builder.indexes.measure._PRODUCTS", 1)
    assert len(make_sample(gallery_vectors).query_QE) == 100


def test_the_sample_knows_its_best_rows(gallery_vectors):
    sample = make_sample(gallery_vectors, most=100)
    expected_scores, _ = reference(sample.query_QE, gallery_vectors, 10)
    assert np.array_equal(sample.tenth_Q, expected_scores[:, -1])
    first, second = sample.halves()
    assert len(first.query_QE) == len(second.query_QE) == 50
    assert not {tuple(q) for q in first.query_QE} & {tuple(q) for q in second.query_QE}


def test_recall_is_the_share_of_the_ten_best(gallery_vectors):
    sample = make_sample(gallery_vectors, most=200)
    recall_Q, ms_Q = ask(Worse(gallery_vectors, 0.5), sample)
    assert set(np.round(recall_Q, 3)) == {np.float32(0.9), np.float32(1.0)}
    assert recall_Q.mean() == pytest.approx(0.95, abs=0.02)
    assert (ms_Q > 0).all()


def test_a_tie_with_the_tenth_counts_as_found():
    vectors = StoredVectors(np.repeat(random_unit(3, 8), 20, axis=0))

    class OtherCopies:
        exact = False

        def search(self, query_QE, k):
            scores_QK, rows_QK = reference(query_QE, vectors, 20)
            return scores_QK[:, -k:], rows_QK[:, -k:]

    recall_Q, _ = ask(OtherCopies(), make_sample(vectors, most=100))
    assert recall_Q.mean() == 1


def test_tuning_takes_the_least_effort_that_reaches_the_target(gallery_vectors):
    sample = make_sample(gallery_vectors, most=400)

    def searchable(effort: Effort) -> Worse:
        return Worse(gallery_vectors, 100 / effort.ef_search)  # misses 10 / ef_search

    tuned = tune("hnsw", searchable, sample, 0.95)
    assert tuned.reached
    assert tuned.effort.ef_search == 256  # 192 misses 5.2 %
    assert tune("hnsw", searchable, sample, 0.995).effort.ef_search > 2000


def test_tuning_of_codes_widens_the_probes_before_it_narrows_the_candidates(gallery_vectors):
    sample = make_sample(gallery_vectors, most=400)

    def searchable(effort: Effort) -> Worse:
        return Worse(gallery_vectors, 2 / effort.num_probes + 1 / effort.refine)

    tuned = tune("ivfpq", searchable, sample, 0.95)
    assert tuned.reached
    assert 0.2 / tuned.effort.num_probes + 0.1 / tuned.effort.refine <= 0.05
    assert tuned.effort.refine < 64


def test_what_is_out_of_reach_is_said_and_the_most_is_kept(gallery_vectors):
    sample = make_sample(gallery_vectors, most=100)
    tuned = tune("hnsw", lambda _: Worse(gallery_vectors, 1), sample, 0.95)
    assert not tuned.reached
    assert tuned.effort == Effort(ef_search=4096)


def test_a_target_out_of_reach_is_named_in_the_reason(tmp_path, gallery_vectors, monkeypatch):
    monkeypatch.setattr("index_builder.indexes.measure._PROBES", (1, 2))
    request = IndexRequest(kind="ivf", target_recall=0.999)
    info = build_index(request, gallery_vectors, tmp_path / "i.faiss")
    assert "no search parameters reach a recall of 0.999" in info.reason
    assert info.search["num_probes"] == 2
    assert 0.1 < info.measured.recall_at_10 < 0.999


def test_a_higher_target_costs_a_wider_search(tmp_path, gallery_vectors):
    probes = []
    for target in (0.5, 0.9, 0.99):
        request = IndexRequest(kind="ivf", target_recall=target)
        info = build_index(request, gallery_vectors, tmp_path / "i.faiss")
        probes.append(info.search["num_probes"])
        assert info.measured.recall_at_10 > target - 0.02
    assert probes == sorted(set(probes))


def test_the_figures_are_of_the_sample_that_was_given(gallery_vectors):
    sample = make_sample(gallery_vectors, most=100)
    measured = measure(Worse(gallery_vectors, 1), gallery_vectors, sample, 777)
    assert measured.num_queries == 100
    assert measured.recall_at_10 == pytest.approx(0.9)
    assert measured.bytes == 777
    assert measured.latency_ms > 0
    assert measured.exact_latency_ms > 0
    few = Sample(sample.query_QE[:3], sample.tenth_Q[:3])
    assert measure(Worse(gallery_vectors, 1), gallery_vectors, few, 1).num_queries == 3


def test_effort_comes_back_from_the_manifest():
    for effort in (Effort(ef_search=64), Effort(num_probes=8, refine=4)):
        assert effort_of(effort.to_parameters()) == effort
    assert Effort(num_probes=8, refine=4).times(8) == Effort(num_probes=64, refine=4)


def test_clustered_vectors_differ_by_seed():
    assert not np.array_equal(clustered(5), clustered(5, seed=1))
