"""What is decided about GPUs, with fakes in their place; benchmarks/gpu.sh runs the real ones."""

import logging

import numpy as np
import pytest

from cots_model.errors import CotsError, InputError
from index_builder.indexes.base import IndexRequest
from index_builder.indexes.build import build_index
from index_builder.indexes.check import check_index
from index_builder.indexes.footprint import gpu_bytes
from index_builder.indexes.gpu import GpuMemoryError, Gpus, find_gpu, memory_errors
from index_builder.indexes.open import open_index
from index_builder.manifest import IndexInfo
from tests.index_builder.indexes.conftest import built, clustered, reference, stored
from tests.index_builder.indexes.fake_gpus import Broken, FakeGpus, OutOfMemory


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """4,000 vectors, and an index of each kind that a GPU searches."""
    folder = tmp_path_factory.mktemp("gpu")
    vectors = stored(clustered(4000), folder / "v.npy")
    infos = {k: built(vectors, folder / f"{k}.faiss", k) for k in ("flat", "hnsw", "ivf", "ivfpq")}
    request = IndexRequest(kind="cagra", device="cuda")
    infos["cagra"] = build_index(request, vectors, folder / "cagra.faiss", gpus=FakeGpus(1))
    return folder, vectors, infos


def test_find_gpu_reads_every_name_of_a_device():
    two = FakeGpus(2)
    assert [find_gpu(name, two) for name in ("auto", "cpu", "cuda", "cuda:1")] == [0, None, 0, 1]
    assert [find_gpu(name, FakeGpus(0)) for name in ("auto", "cpu", "cuda", "cuda:1")] == [None] * 4
    with pytest.raises(InputError, match=r"'cuda:2' is not here \(FAISS sees 2\)"):
        find_gpu("cuda:2", two)
    for name in ("gpu", "cuda:", "cpu:0", "auto:1", "cuda:-1", ""):
        with pytest.raises(InputError, match="accepted: auto, cpu, cuda, cuda:N"):
            find_gpu(name, two)


def test_real_gpus_are_counted_without_one():
    assert Gpus().count() >= 0


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq", "cagra"])
def test_a_gpu_gives_what_the_cpu_gives(indexed, kind):
    folder, vectors, infos = indexed
    gpus = FakeGpus(1)
    on_gpu = open_index(folder / f"{kind}.faiss", infos[kind], vectors, gpus=gpus)
    on_cpu = open_index(folder / f"{kind}.faiss", infos[kind], vectors, device="cpu", gpus=gpus)
    [copy] = gpus.copies
    query_QE = clustered(20, seed=4)
    for found, expected in zip(
        on_gpu.search(query_QE, 10), on_cpu.search(query_QE, 10), strict=True
    ):
        assert np.array_equal(found, expected)
    assert copy.widths


def test_a_gpu_is_not_asked_for_more_than_it_can(indexed):
    folder, vectors, infos = indexed
    gpus = FakeGpus(1)
    index = open_index(folder / "flat.faiss", infos["flat"], vectors, gpus=gpus)
    query_QE = clustered(2, seed=5)
    _, rows_QK = index.search(query_QE, 2017)  # 2,049 rows are looked at
    assert np.array_equal(rows_QK, reference(query_QE, vectors, 2017)[1])
    assert gpus.copies[0].widths == []
    index.search(query_QE, 2016)
    assert gpus.copies[0].widths == [2048]
    many = infos["ivf"].model_copy(update={"search": {"num_probes": 2049, "refine": 1}})
    open_index(folder / "ivf.faiss", many, vectors, gpus=gpus).search(query_QE, 10)
    assert gpus.copies[1].widths == []


def test_hnsw_stays_on_the_cpu(indexed):
    folder, vectors, infos = indexed
    gpus = FakeGpus(1)
    open_index(folder / "hnsw.faiss", infos["hnsw"], vectors, device="cuda", gpus=gpus)
    assert gpus.copies == []


def test_cagra_is_searched_on_the_cpu_where_faiss_has_no_cagra(indexed):
    folder, vectors, infos = indexed
    gpus = FakeGpus(1, cagra=False)
    index = open_index(folder / "cagra.faiss", infos["cagra"], vectors, device="cuda", gpus=gpus)
    assert gpus.copies == []
    query_QE = clustered(50, seed=6)
    scores_QK, _ = index.search(query_QE, 10)
    assert (scores_QK >= reference(query_QE, vectors, 10)[0][:, -1:]).mean() > 0.95


def test_cagra_is_saved_for_cpus_and_passes_the_check(indexed):
    folder, vectors, infos = indexed
    assert infos["cagra"].kind == "cagra"
    assert infos["cagra"].measured.recall_at_10 > 0.93
    assert check_index(folder / "cagra.faiss", infos["cagra"], vectors) is None


def test_too_little_memory_is_said_before_it_is_taken(indexed):
    folder, vectors, infos = indexed
    gpus = FakeGpus(1, free=1000)
    with pytest.raises(GpuMemoryError) as caught:
        open_index(folder / "ivf.faiss", infos["ivf"], vectors, device="cuda", gpus=gpus)
    needed_bytes = gpu_bytes("ivf", vectors.shape)
    assert f"needs about {needed_bytes:,} bytes on GPU 0, which has 1,000 free" in str(caught.value)
    assert "--device cpu" in str(caught.value)
    assert isinstance(caught.value, CotsError)
    assert not isinstance(caught.value, InputError)
    assert gpus.copies == []


@pytest.mark.parametrize("gpus", [FakeGpus(1, free=1000), FakeGpus(1, fails=OutOfMemory())])
def test_auto_goes_on_with_the_cpu_and_says_so(indexed, caplog, gpus):
    folder, vectors, infos = indexed
    with caplog.at_level(logging.WARNING):
        index = open_index(folder / "flat.faiss", infos["flat"], vectors, gpus=gpus)
        query_QE = clustered(5, seed=7)
        for _ in range(2):
            _, rows_QK = index.search(query_QE, 10)
            assert np.array_equal(rows_QK, reference(query_QE, vectors, 10)[1])
    assert sum("on the CPU" in message for message in caplog.messages) == 1


def test_memory_that_runs_out_in_a_search_is_an_error_where_the_gpu_was_asked_for(indexed):
    folder, vectors, infos = indexed
    gpus = FakeGpus(1, fails=OutOfMemory())
    index = open_index(folder / "flat.faiss", infos["flat"], vectors, device="cuda", gpus=gpus)
    with pytest.raises(GpuMemoryError, match="ran out of memory for a search"):
        index.search(clustered(1), 10)


def test_other_failures_of_a_gpu_are_not_taken_for_memory(indexed):
    folder, vectors, infos = indexed
    gpus = FakeGpus(1, fails=Broken())
    index = open_index(folder / "flat.faiss", infos["flat"], vectors, gpus=gpus)
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        index.search(clustered(1), 10)


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_an_index_built_on_a_gpu_is_saved_for_cpus(indexed, tmp_path, kind):
    _, vectors, _ = indexed
    gpus = FakeGpus(1)
    steps: list[int] = []
    request = IndexRequest(kind=kind, device="cuda")
    path = tmp_path / "i.faiss"
    info = build_index(request, vectors, path, progress=steps.append, gpus=gpus)
    assert len(gpus.copies) == 1
    assert sum(steps) == 4000
    assert check_index(path, info, vectors) is None
    assert info.measured.recall_at_10 > 0.93


def test_a_build_that_does_not_fit_the_gpu_moves_or_fails(indexed, tmp_path, caplog):
    _, vectors, _ = indexed
    gpus = FakeGpus(1, free=1000)
    with pytest.raises(GpuMemoryError, match="building the ivf index needs about"):
        build_index(IndexRequest(kind="ivf", device="cuda"), vectors, tmp_path / "i", gpus=gpus)
    info = build_index(IndexRequest(kind="ivf"), vectors, tmp_path / "i", gpus=gpus)
    assert info.kind == "ivf"
    assert "building on the CPU: building the ivf index needs about" in caplog.text
    with pytest.raises(GpuMemoryError, match="building the cagra index"):
        build_index(IndexRequest(kind="cagra"), vectors, tmp_path / "i", gpus=gpus)


def test_faiss_s_own_words_for_lack_of_memory_are_kept():
    with (
        pytest.raises(GpuMemoryError, match=r"about 12,345 bytes.*cudaMalloc"),
        memory_errors("a test", 12345),
    ):
        OutOfMemory().search()
    assert issubclass(GpuMemoryError, CotsError)
    assert IndexInfo(kind="cagra").search == {}
