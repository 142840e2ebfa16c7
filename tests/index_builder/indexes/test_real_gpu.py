"""FAISS on a real GPU beside exact search; skipped without one (`benchmarks/gpu.sh search`)."""

import threading

import numpy as np
import pytest
import torch

from index_builder.indexes.base import IndexRequest
from index_builder.indexes.build import build_index
from index_builder.indexes.check import check_index
from index_builder.indexes.gpu import SCRATCH_BYTES, GpuMemoryError, Gpus
from index_builder.indexes.open import open_index
from tests.index_builder.indexes.conftest import built, clustered, reference, stored

pytestmark = pytest.mark.skipif(Gpus().count() == 0, reason="this FAISS sees no GPU")
TYPES = ("float32", "float16", "int8")
DIM = 64


@pytest.fixture(params=["ivf", "ivfpq", "cagra"])
def kind(request):
    if request.param == "cagra" and not Gpus().has_cagra():
        pytest.skip("this FAISS has no CAGRA")
    return request.param


@pytest.mark.parametrize("vector_type", TYPES)
def test_a_flat_index_on_a_gpu_is_exact(tmp_path, vector_type):
    vectors = stored(clustered(50_000, DIM), tmp_path / "v.npy", vector_type)
    info = built(vectors, tmp_path / "i.faiss")
    index = open_index(tmp_path / "i.faiss", info, vectors, device="cuda")
    query_QE = clustered(50, DIM, seed=1)
    for k in (1, 10, 1000, 3000):
        scores_QK, rows_QK = index.search(query_QE, k)
        expected_scores, expected_rows = reference(query_QE, vectors, k)
        assert np.array_equal(rows_QK, expected_rows)
        assert np.array_equal(scores_QK, expected_scores)


def test_an_index_built_on_a_gpu_is_searched_on_both(tmp_path, kind):
    vectors = stored(clustered(50_000, DIM), tmp_path / "v.npy")
    path = tmp_path / "i.faiss"
    info = build_index(IndexRequest(kind=kind, device="cuda"), vectors, path)
    assert check_index(path, info, vectors) is None
    query_QE = clustered(200, DIM, seed=1)
    expected_scores, _ = reference(query_QE, vectors, 10)
    for device in ("cuda", "cpu"):
        index = open_index(path, info, vectors, device=device)
        scores_QK, _ = index.search(query_QE, 10)
        assert (scores_QK >= expected_scores[:, -1:]).mean() > 0.93, device
        for k in (300, 3000):
            assert index.search(query_QE[:3], k)[1].shape == (3, k)


def test_an_index_built_on_a_cpu_is_searched_on_a_gpu(tmp_path, kind):
    if kind == "cagra":
        pytest.skip("only GPUs build CAGRA")
    vectors = stored(clustered(20_000, DIM), tmp_path / "v.npy")
    info = built(vectors, tmp_path / "i.faiss", kind)
    query_QE = clustered(200, DIM, seed=1)
    on_gpu, on_cpu = (
        open_index(tmp_path / "i.faiss", info, vectors, device=device).search(query_QE, 10)[1]
        for device in ("cuda", "cpu")
    )
    assert (on_gpu == on_cpu).mean() > 0.98


def test_threads_share_an_index_on_a_gpu(tmp_path):
    vectors = stored(clustered(20_000, DIM), tmp_path / "v.npy")
    info = built(vectors, tmp_path / "i.faiss")
    index = open_index(tmp_path / "i.faiss", info, vectors, device="cuda")
    query_QE = clustered(400, DIM, seed=2)
    _, expected_rows = reference(query_QE, vectors, 10)
    wrong: list[int] = []

    def work(first: int) -> None:
        for at in range(first, 400, 8):
            _, rows_1K = index.search(query_QE[at : at + 1], 10)
            if not np.array_equal(rows_1K[0], expected_rows[at]):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Unaware(Gpus):
    """Does not know how much memory is free, so that FAISS itself must run out."""

    def free_bytes(self, gpu):
        return None


@pytest.mark.parametrize(("gpus", "said"), [(Gpus(), "needs about"), (Unaware(), "ran out of")])
def test_too_little_memory_is_an_error_or_left_to_the_cpu(tmp_path, gpus, said, caplog):
    vectors = stored(clustered(5000, DIM), tmp_path / "v.npy")
    info = built(vectors, tmp_path / "i.faiss")
    free_bytes, _ = torch.cuda.mem_get_info(0)
    hog = torch.empty(free_bytes - SCRATCH_BYTES // 2, dtype=torch.uint8, device="cuda:0")
    try:
        with pytest.raises(GpuMemoryError, match=said):
            open_index(tmp_path / "i.faiss", info, vectors, device="cuda", gpus=gpus)
        index = open_index(tmp_path / "i.faiss", info, vectors, device="auto", gpus=gpus)
    finally:
        del hog
        torch.cuda.empty_cache()
    assert "searching on the CPU" in caplog.text
    query_QE = clustered(5, DIM, seed=3)
    assert np.array_equal(index.search(query_QE, 10)[1], reference(query_QE, vectors, 10)[1])
