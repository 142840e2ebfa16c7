"""Vectors as they are stored: what comes back, and what that costs."""

import tracemalloc

import numpy as np
import pytest

from cots_model.errors import GalleryError, InputError
from index_builder.manifest import VectorsInfo
from index_builder.vectors import (
    NORM_TOLERANCE,
    StoredVectors,
    Vectors,
    open_vectors,
    write_vectors,
)

TYPES = ("float32", "float16", "int8")


def unit(count: int, dim: int, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def written(vectors_NE: Vectors, path, vector_type, block: int = 7) -> StoredVectors:
    def blocks():
        return (vectors_NE[start : start + block] for start in range(0, len(vectors_NE), block))

    info = write_vectors(path, blocks, vectors_NE.shape, vector_type)
    return open_vectors(path, vectors_NE.shape, info)


@pytest.mark.parametrize(
    ("vector_type", "step"), [("float32", 0), ("float16", 2.0**-11), ("int8", 1 / 254)]
)
def test_write_vectors_rounds_to_the_nearest_stored_number(tmp_path, vector_type, step):
    vectors_NE = unit(100, 64)
    stored = written(vectors_NE, tmp_path / "v.npy", vector_type)
    read_NE = np.concatenate(list(stored.blocks(33)))
    assert read_NE.dtype == np.float32
    assert np.abs(read_NE - vectors_NE).max() <= step * np.abs(vectors_NE).max() * (1 + 1e-6)
    assert np.abs(np.linalg.norm(read_NE, axis=1) - 1).max() <= NORM_TOLERANCE[vector_type]
    assert stored.stored_NE.dtype == np.dtype(vector_type)


@pytest.mark.parametrize("vector_type", TYPES)
def test_write_vectors_gives_the_same_bytes_whatever_the_blocks(tmp_path, vector_type):
    vectors_NE = unit(100, 16)
    for block in (1, 7, 100):
        written(vectors_NE, tmp_path / f"{block}.npy", vector_type, block)
    assert len({(tmp_path / f"{block}.npy").read_bytes() for block in (1, 7, 100)}) == 1


@pytest.mark.parametrize("vector_type", TYPES)
def test_rows_and_blocks_agree_bit_for_bit(tmp_path, vector_type):
    stored = written(unit(50, 16), tmp_path / "v.npy", vector_type)
    whole_NE = np.concatenate(list(stored.blocks(13)))
    rows = np.array([49, 0, 7, 7])
    assert np.array_equal(stored.rows(rows), whole_NE[rows])
    stored.rows(rows)[:] = 0  # a copy
    assert np.array_equal(next(stored.blocks(50)), whole_NE)


def test_int8_uses_one_scale_and_all_of_its_range(tmp_path):
    vectors_NE = unit(100, 64)
    stored = written(vectors_NE, tmp_path / "v.npy", "int8")
    assert np.abs(stored.stored_NE.astype(int)).max() == 127
    assert stored.scale == pytest.approx(np.abs(vectors_NE).max() / 127)
    assert stored.scale == float(np.float32(stored.scale))


def test_write_vectors_refuses_what_int8_cannot_hold(tmp_path):
    spread_E = np.full(1024, 1 / 32, np.float32)
    spread_E[:512] *= np.sqrt(1.5)
    spread_E[512:] *= np.sqrt(0.5)
    vectors_NE = np.stack([np.eye(1, 1024, dtype=np.float32)[0], spread_E])
    with pytest.raises(InputError, match=r"int8.* length 1\.0\d+ instead of 1.*float16"):
        written(vectors_NE, tmp_path / "v.npy", "int8")
    written(vectors_NE, tmp_path / "v.npy", "float16")


def test_write_vectors_refuses_vectors_that_are_no_unit_vectors(tmp_path):
    for bad in (np.nan, 2.0):
        vectors_NE = unit(5, 8)
        vectors_NE[3] *= bad
        with pytest.raises(InputError, match=r"length (nan|2)"):
            written(vectors_NE, tmp_path / "v.npy", "float32")


@pytest.mark.parametrize("vector_type", TYPES)
def test_write_vectors_holds_no_more_than_some_blocks(tmp_path, vector_type):
    block_nE = unit(1000, 64)
    tracemalloc.start()
    write_vectors(
        tmp_path / "v.npy", lambda: (block_nE for _ in range(100)), (100_000, 64), vector_type
    )
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * block_nE.nbytes


def test_open_vectors_refuses_what_is_not_in_the_manifest(tmp_path):
    written(unit(5, 8), tmp_path / "v.npy", "float16")
    with pytest.raises(GalleryError, match=r"v\.npy holds float16 \(5, 8\).*float32"):
        open_vectors(tmp_path / "v.npy", (5, 8), VectorsInfo())
    with pytest.raises(GalleryError, match=r"says float16 \(6, 8\)"):
        open_vectors(tmp_path / "v.npy", (6, 8), VectorsInfo(type="float16"))
    (tmp_path / "v.npy").write_bytes(b"junk")
    with pytest.raises(GalleryError, match=r"v\.npy is damaged"):
        open_vectors(tmp_path / "v.npy", (5, 8), VectorsInfo(type="float16"))
