"""The vectors of a version, `vectors.npy`: the one place that writes and reads it.

Rows are unit vectors in float32, float16 or int8. What is stored is what is scored: every reader
gets `stored number x scale` as float32, so all indexes and the exact search see the same vectors.

Shape letters: N rows, n some of them, E dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from cots_model.errors import GalleryError, InputError
from index_builder.manifest import VectorsInfo, VectorType

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

BLOCK = 65536
NORM_TOLERANCE: dict[VectorType, float] = {"float32": 1e-3, "float16": 1e-3, "int8": 1e-2}
_INT8_MAX = 127
_SERIAL = 32 * 1024
"""Numbers that PyTorch converts without waking other threads: these are often needed elsewhere."""


class VectorRows(Protocol):
    """Unit vectors by row, wherever they are kept."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, E)`."""
        ...

    def rows(self, rows_n: Rows) -> Vectors:
        """The vectors `[n,E]` of some rows, float32 (a copy)."""
        ...

    def blocks(self, size: int = BLOCK) -> Iterator[Vectors]:
        """All vectors in order, `[n,E]` float32 at a time."""
        ...


class StoredVectors:
    """`vectors.npy`, memory-mapped and read-only; safe to use from several threads."""

    def __init__(self, stored_NE: np.ndarray, scale: float = 1.0) -> None:
        """Hold stored numbers (float32, float16 or int8); `open_vectors` is the usual way here."""
        self._stored_NE = stored_NE
        self._scale = np.float32(scale)

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, E)`."""
        num_rows, dim = self._stored_NE.shape
        return num_rows, dim

    @property
    def stored_NE(self) -> np.ndarray:
        """The numbers as stored, memory-mapped."""
        return self._stored_NE

    @property
    def scale(self) -> float:
        """Stored number x scale = component."""
        return float(self._scale)

    def rows(self, rows_n: Rows) -> Vectors:
        """The vectors `[n,E]` of some rows, float32 (a copy)."""
        return self._to_float32(self._stored_NE[rows_n])

    def blocks(self, size: int = BLOCK) -> Iterator[Vectors]:
        """All vectors in order, `[n,E]` float32 at a time; not to be written to."""
        for start in range(0, len(self._stored_NE), size):
            block_nE = self._stored_NE[start : start + size]
            is_float32 = block_nE.dtype == np.float32 and self._scale == 1
            yield np.asarray(block_nE) if is_float32 else self._to_float32(block_nE)

    def _to_float32(self, stored_nE: np.ndarray) -> Vectors:
        vectors_nE: Vectors
        if stored_nE.dtype == np.float16:
            vectors_nE = _from_float16(stored_nE)
        else:
            vectors_nE = np.array(stored_nE, dtype=np.float32)
        if self._scale != 1:
            vectors_nE *= self._scale
        return vectors_nE


def _from_float16(stored_nE: np.ndarray) -> Vectors:
    """Float32, by PyTorch, which converts ten times as fast as NumPy, and by this thread alone."""
    vectors_nE = np.empty(stored_nE.shape, np.float32)
    step = max(1, _SERIAL // max(1, stored_nE.shape[1]))
    for start in range(0, len(stored_nE), step):
        some = np.array(stored_nE[start : start + step])  # a memory map cannot be a tensor
        torch.from_numpy(vectors_nE[start : start + step]).copy_(torch.from_numpy(some))
    return vectors_nE


def write_vectors(
    path: Path,
    blocks: Callable[[], Iterator[Vectors]],
    shape: tuple[int, int],
    type: VectorType,  # noqa: A002
) -> VectorsInfo:
    """Write `vectors.npy` block by block.

    Args:
        path: the new file.
        blocks: gives all unit vectors in order, `[n,E]` float32 at a time; called twice for int8,
            which needs the largest component of the gallery before the first number is written.
        shape: `(N, E)` of all blocks together.
        type: of the numbers to be stored.

    Raises:
        InputError: if the vectors do not stay unit vectors (`NORM_TOLERANCE`) when stored so.
        OSError: if there is no space for the file.
    """
    scale = _int8_scale(blocks()) if type == "int8" else 1.0
    stored_NE = create_array(path, shape, type)
    start = 0
    for block_nE in blocks():
        rows = slice(start, start + len(block_nE))
        stored_NE[rows] = np.rint(block_nE / np.float32(scale)) if type == "int8" else block_nE
        _check_norms(StoredVectors(stored_NE[rows], scale), type)
        start += len(block_nE)
    assert start == shape[0], f"{start} vectors came for {shape[0]} rows"
    stored_NE.flush()
    return VectorsInfo(type=type, scale=scale)


def _int8_scale(blocks: Iterator[Vectors]) -> float:
    """One for the whole gallery, a float32: the largest component becomes 127."""
    largest = max((float(np.abs(block_nE).max()) for block_nE in blocks), default=0.0)
    return float(np.float32(largest / _INT8_MAX)) or 1.0


def _check_norms(vectors: StoredVectors, type: VectorType) -> None:  # noqa: A002
    norms_n = np.concatenate([np.linalg.norm(block, axis=1) for block in vectors.blocks()])
    worst = float(norms_n[np.argmax(np.abs(norms_n - 1))])
    if not abs(worst - 1) <= NORM_TOLERANCE[type]:  # NaN included
        raise InputError(
            f"stored as {type}, a vector has length {worst:.4f} instead of 1; these vectors need "
            "float16 or float32"
        )


def open_vectors(path: Path, shape: tuple[int, int], info: VectorsInfo) -> StoredVectors:
    """Open the vectors of a version.

    Raises:
        GalleryError: if the file is damaged or is not what the manifest says.
    """
    try:
        stored_NE = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as err:
        raise GalleryError(f"{path} is damaged ({err}); build the gallery again") from err
    if stored_NE.dtype != np.dtype(info.type) or stored_NE.shape != shape:
        raise GalleryError(
            f"{path} holds {stored_NE.dtype} {stored_NE.shape}; the manifest says {info.type} "
            f"{shape}; build the gallery again"
        )
    return StoredVectors(stored_NE, info.scale)


def create_array(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.memmap:
    """A new `.npy` file to be filled, with its disk space claimed; OSError if there is none.

    A full disk is then an error here, and not a SIGBUS while writing to the map.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    return array
