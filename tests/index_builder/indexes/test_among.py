"""Searching among some rows: whoever waits can be asked between some queries."""

import numpy as np

from index_builder.indexes import among
from index_builder.indexes.open import open_index
from tests.index_builder.indexes.conftest import built, random_unit, stored


def test_an_exact_ranking_looks_at_the_clock_between_some_queries(tmp_path, monkeypatch):
    """Where most rows match, a flat index is asked instead of a scan."""
    vectors = stored(random_unit(600, 16), tmp_path / "v.npy")
    info = built(vectors, tmp_path / "i.faiss", "flat")
    index = open_index(tmp_path / "i.faiss", info, vectors, device="cpu")
    monkeypatch.setattr(among, "RANKED_AT_ONCE", 64)
    looked = []
    rows_M, query_QE = np.arange(500), random_unit(12, 16, seed=1)
    scores_QK, rows_QK = index.search_among(query_QE, 10, rows_M, lambda: looked.append(1))
    assert len(looked) > 3
    expected_scores, expected_rows = index.search_among(query_QE, 10, rows_M)
    assert np.array_equal(rows_QK, expected_rows)
    assert np.array_equal(scores_QK, expected_scores)
