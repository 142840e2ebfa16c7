"""What `auto` takes, by count, memory and device, and what it says about it."""

import pytest

from cots_model.errors import InputError
from index_builder.indexes.base import IndexRequest
from index_builder.indexes.choose import choose, exact_ms
from index_builder.indexes.footprint import gpu_build_bytes, index_bytes
from tests.index_builder.indexes.fake_gpus import FakeGpus

GIB = 2**30
AUTO = IndexRequest(kind="auto", device="auto")
NONE = FakeGpus(0)


@pytest.mark.parametrize(
    ("count", "free_bytes", "kind", "said"),
    [
        (20, GIB, "flat", "20 vectors: an exact search takes under a millisecond"),
        (200_000, 8 * GIB, "flat", "200,000 vectors: an exact search takes about"),
        (200_000, GIB // 4, "ivfpq", "are more than 50% of the 0.2 GiB available"),
        (1_500_000, 16 * GIB, "hnsw", "a graph of 1.8 GiB fits in memory"),
        (1_500_000, 7 * GIB // 2, "ivf", "GiB of graph are more than 50% of the 3.5 GiB available"),
        (1_500_000, 2 * GIB, "ivfpq", "GiB of vectors are more than 50% of the 2.0 GiB available"),
        (5_000_000, 64 * GIB, "ivf", "takes one thread too long to build"),
        (50_000_000, 64 * GIB, "ivfpq", "an exact search would take about"),
    ],
)
def test_auto_on_a_cpu_goes_by_time_and_memory(count, free_bytes, kind, said):
    choice = choose(AUTO, (count, 256), NONE, free_bytes)
    assert choice.kind == kind
    assert said in choice.reason
    assert f"{count:,} vectors" in choice.reason


def test_auto_takes_memory_as_it_finds_it():
    assert choose(AUTO, (1000, 32), NONE).kind == "flat"


def test_auto_goes_by_width_as_well_as_count():
    assert choose(AUTO, (200_000, 256), NONE, 64 * GIB).kind == "flat"
    assert choose(AUTO, (200_000, 2048), NONE, 64 * GIB).kind == "hnsw"
    assert exact_ms((200_000, 2048)) == 8 * exact_ms((200_000, 256))


@pytest.mark.parametrize(
    ("count", "cagra", "gpu_free", "kind", "said"),
    [
        (5_000_000, True, 40 * GIB, "flat", "a GPU searches so many exactly"),
        (20_000_000, True, 140 * GIB, "cagra", "its graph fits the GPU"),
        (20_000_000, False, 140 * GIB, "ivf", "this FAISS builds no cagra"),
        (20_000_000, True, 30 * GIB, "ivf", "GPU 0"),
        (5_000_000, True, 2 * GIB, "ivf", "takes one thread too long to build"),
    ],
)
def test_auto_on_a_gpu_goes_by_what_fits_it(count, cagra, gpu_free, kind, said):
    gpus = FakeGpus(1, free=gpu_free, cagra=cagra)
    choice = choose(AUTO, (count, 256), gpus, 256 * GIB)
    assert choice.kind == kind
    assert said in choice.reason


def test_auto_for_the_cpu_does_not_look_at_gpus():
    on_cpu = IndexRequest(kind="auto", device="cpu")
    assert choose(on_cpu, (5_000_000, 256), FakeGpus(1), 256 * GIB).kind == "ivf"


def test_what_is_asked_for_by_name_is_taken_without_a_reason():
    for kind in ("flat", "hnsw", "ivf", "ivfpq"):
        choice = choose(IndexRequest(kind=kind), (100, 16), NONE, 1)
        assert (choice.kind, choice.reason) == (kind, "")


@pytest.mark.parametrize("gpus", [NONE, FakeGpus(1, cagra=False)])
def test_cagra_is_refused_where_it_cannot_be_built(gpus):
    with pytest.raises(InputError, match=r"FAISS with cuVS.*use --index hnsw"):
        choose(IndexRequest(kind="cagra"), (100, 16), gpus)
    assert choose(IndexRequest(kind="cagra"), (100, 16), FakeGpus(1)).kind == "cagra"
    with pytest.raises(InputError, match="NVIDIA GPU"):
        choose(IndexRequest(kind="cagra", device="cpu"), (100, 16), FakeGpus(1))


def test_a_request_is_checked():
    with pytest.raises(InputError, match=r"unknown index 'lsh'; accepted: flat, hnsw"):
        IndexRequest(kind="lsh")
    for recall in (0, 1.1, float("nan")):
        with pytest.raises(InputError, match="target recall"):
            IndexRequest(target_recall=recall)


def test_index_bytes_are_those_of_the_file(tmp_path):
    from tests.index_builder.indexes.conftest import built, random_unit, stored

    for vector_type in ("float32", "float16", "int8"):
        vectors = stored(random_unit(3000, 32), tmp_path / "v.npy", vector_type)
        for kind in ("flat", "hnsw", "ivf", "ivfpq") if vector_type == "float32" else ("flat",):
            built(vectors, tmp_path / "i.faiss", kind)
            size_bytes = (tmp_path / "i.faiss").stat().st_size
            expected_bytes = index_bytes(kind, (3000, 32), vector_type)
            assert expected_bytes == pytest.approx(size_bytes, rel=0.1, abs=80_000)
    assert gpu_build_bytes("cagra", (10**6, 256)) > gpu_build_bytes("flat", (10**6, 256))
