"""Every kind beside exact search: the same scores, never too few rows, the same bytes again."""

import hashlib
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from index_builder.indexes.approximate import ApproximateIndex
from index_builder.indexes.check import check_index
from index_builder.indexes.effort import Effort
from index_builder.indexes.kinds import code_bytes, num_lists
from index_builder.indexes.open import open_index
from index_builder.vectors import StoredVectors
from tests.index_builder.indexes.conftest import built, clustered, random_unit, reference, stored

KINDS = ("flat", "hnsw", "ivf", "ivfpq")
TYPES = ("float32", "float16", "int8")


@pytest.fixture(scope="module", params=KINDS)
def every(request, gallery_vectors, tmp_path_factory):
    """Path and info of an index of each kind over `gallery_vectors`."""
    path = tmp_path_factory.mktemp("index") / "i.faiss"
    return path, built(gallery_vectors, path, request.param)


def test_every_kind_reaches_its_target_and_says_so(every, gallery_vectors):
    path, info = every
    assert info.measured.recall_at_10 >= 0.93  # of the other half of the sample than was tuned on
    assert info.measured.bytes == path.stat().st_size
    assert info.measured.num_queries == (50 if info.kind == "flat" else 500)
    assert 0 < info.measured.latency_ms < 100
    query_QE = clustered(200, seed=1)
    index = open_index(path, info, gallery_vectors)
    scores_QK, rows_QK = index.search(query_QE, 10)
    expected_scores, expected_rows = reference(query_QE, gallery_vectors, 10)
    assert (scores_QK >= expected_scores[:, -1:]).mean() >= 0.95
    assert index.exact == (info.kind == "flat")
    if index.exact:
        assert np.array_equal(rows_QK, expected_rows)


def test_every_kind_gives_a_row_the_same_score(every, gallery_vectors):
    path, info = every
    query_QE = random_unit(20, 32, 1)
    scores_QK, rows_QK = open_index(path, info, gallery_vectors).search(query_QE, 50)
    expected_scores, expected_rows = reference(query_QE, gallery_vectors, 6000)
    for at in range(20):
        score_of_row = np.empty(6000, np.float32)
        score_of_row[expected_rows[at]] = expected_scores[at]
        assert np.array_equal(scores_QK[at], score_of_row[rows_QK[at]])
        assert len(set(rows_QK[at])) == 50
        assert np.array_equal(np.lexsort((rows_QK[at], -scores_QK[at])), np.arange(50))


@pytest.mark.parametrize("k", [1, 10, 999, 2500, 6000, 7000])
def test_every_kind_gives_as_many_rows_as_are_asked_for(every, gallery_vectors, k):
    path, info = every
    index = open_index(path, info, gallery_vectors)
    scores_QK, rows_QK = index.search(random_unit(3, 32, 2), k)
    assert scores_QK.shape == rows_QK.shape == (3, min(k, 6000))
    assert all(len(set(rows_K)) == min(k, 6000) for rows_K in rows_QK)
    assert rows_QK.min() >= 0


def test_an_index_that_finds_too_few_looks_further(tmp_path, gallery_vectors):
    """One probe of 128 lists holds some fifty rows, and 900 are wanted."""
    info = built(gallery_vectors, tmp_path / "i.faiss", "ivf")
    narrow = info.model_copy(update={"search": {"num_probes": 1, "refine": 1}})
    query_QE = random_unit(5, 32, 3)
    index = open_index(tmp_path / "i.faiss", narrow, gallery_vectors)
    scores_QK, rows_QK = index.search(query_QE, 900)
    expected_scores, expected_rows = reference(query_QE, gallery_vectors, 900)
    assert np.array_equal(rows_QK, expected_rows)
    assert np.array_equal(scores_QK, expected_scores)


def test_one_short_query_does_not_change_the_others():
    class HalfBlind:
        def propose(self, query_QE, width, effort):
            rows_QW = np.tile(np.arange(width), (len(query_QE), 1))
            rows_QW[query_QE[:, 0] > 0, 3:] = -1  # FAISS's sign for nothing found
            return rows_QW.astype(np.float32), rows_QW

    vectors = StoredVectors(random_unit(1100, 8))
    query_QE = random_unit(40, 8, 1)
    scores_QK, rows_QK = ApproximateIndex(HalfBlind(), vectors, Effort()).search(query_QE, 5)
    expected_scores, expected_rows = reference(query_QE, vectors, 5)
    for query_E, rows_K, best_K in zip(query_QE, rows_QK, expected_rows, strict=True):
        assert np.array_equal(rows_K, best_K) or query_E[0] <= 0
        assert rows_K.max() < 37 or query_E[0] > 0  # of the 37 proposed
    assert np.array_equal(scores_QK[query_QE[:, 0] > 0], expected_scores[query_QE[:, 0] > 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vector_type", ["float16", "int8"])
def test_every_kind_indexes_what_is_stored(tmp_path, kind, vector_type):
    vectors = stored(clustered(3000), tmp_path / "v.npy", vector_type)
    info = built(vectors, tmp_path / "i.faiss", kind)
    assert check_index(tmp_path / "i.faiss", info, vectors) is None
    query_QE = clustered(50, seed=2)
    scores_QK, _ = open_index(tmp_path / "i.faiss", info, vectors).search(query_QE, 10)
    expected_scores, _ = reference(query_QE, vectors, 10)
    assert (scores_QK >= expected_scores[:, -1:]).mean() >= 0.93


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "dim"), [(1, 16), (2, 31), (40, 30), (1100, 17)])
def test_every_kind_can_be_built_of_very_few(tmp_path, kind, count, dim, capfd):
    vectors = stored(random_unit(count, dim), tmp_path / "v.npy")
    info = built(vectors, tmp_path / "i.faiss", kind)
    index = open_index(tmp_path / "i.faiss", info, vectors)
    query_QE = random_unit(4, dim, 1)
    scores_QK, _ = index.search(query_QE, 5)
    expected_scores, _ = reference(query_QE, vectors, 5)
    assert (scores_QK >= expected_scores[:, -1:]).mean() > 0.85
    assert check_index(tmp_path / "i.faiss", info, vectors) is None
    assert capfd.readouterr() == ("", "")  # FAISS warns on stderr where it has few rows to learn of


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_copies_of_one_vector(tmp_path, kind):
    vectors = stored(np.repeat(random_unit(40, 16), 50, axis=0), tmp_path / "v.npy")
    info = built(vectors, tmp_path / "i.faiss", kind)
    [vectors_NE] = vectors.blocks()
    _, rows_QK = open_index(tmp_path / "i.faiss", info, vectors).search(vectors_NE[::50], 10)
    assert (rows_QK // 50 == np.arange(40)[:, None]).mean() > 0.95


def test_searches_from_many_threads_give_what_they_give_alone(every, gallery_vectors):
    path, info = every
    index = open_index(path, info, gallery_vectors)
    query_QE = clustered(60, seed=3)
    alone = [index.search(query_QE[at : at + 1], 1 + 7 * (at % 9)) for at in range(60)]
    together: list = [None] * 60

    def work(first: int) -> None:
        for at in range(first, 60, 6):
            together[at] = index.search(query_QE[at : at + 1], 1 + 7 * (at % 9))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (scores, rows), (scores_alone, rows_alone) in zip(together, alone, strict=True):
        assert np.array_equal(rows, rows_alone)
        assert np.array_equal(scores, scores_alone)


BUILD = """
import os, sys
if os.environ["OMP_NUM_THREADS"] == "1" and sys.platform == "linux":
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
from pathlib import Path
from index_builder.indexes.base import IndexRequest
from index_builder.indexes.build import build_index
from index_builder.manifest import VectorsInfo
from index_builder.vectors import open_vectors
folder, kind = Path(sys.argv[1]), sys.argv[2]
vectors = open_vectors(folder / "v.npy", (9000, 32), VectorsInfo())
info = build_index(IndexRequest(kind=kind), vectors, folder / sys.argv[3])
measured = info.measured.model_copy(update={"latency_ms": 0, "exact_latency_ms": 0})
print(info.model_copy(update={"measured": measured}).model_dump_json())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_build_the_same_bytes_on_one_core_and_on_more(tmp_path, kind):
    stored(clustered(9000), tmp_path / "v.npy")
    said = []
    for name, cores in (("one", "1"), ("more", "3")):
        environment = {**os.environ, "OMP_NUM_THREADS": cores, "OPENBLAS_NUM_THREADS": cores}
        arguments = [sys.executable, "-c", BUILD, str(tmp_path), kind, name]
        done = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, check=False, timeout=250
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    hashes = {hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in ("one", "more")}
    assert len(hashes) == 1
    assert said[0] == said[1]


def test_a_build_reports_its_progress(tmp_path, gallery_vectors):
    from index_builder.indexes.base import IndexRequest
    from index_builder.indexes.build import build_index

    for kind in KINDS:
        steps: list[int] = []
        request = IndexRequest(kind=kind)
        build_index(request, gallery_vectors, tmp_path / "i.faiss", progress=steps.append)
        assert sum(steps) == 6000


def test_parameters_grow_with_the_gallery():
    assert [num_lists(n) for n in (1, 100, 10_000, 200_000, 1_000_000)] == [1, 2, 256, 2048, 4096]
    assert [code_bytes(dim) for dim in (1, 7, 30, 32, 256, 768)] == [1, 1, 6, 8, 64, 192]
