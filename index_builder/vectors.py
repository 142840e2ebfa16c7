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

from cots_model.errors import GalleryError
from index_builder.manifest import VectorsInfo, VectorType

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

BLOCK = 65536


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
        """All vectors in order, `[n,E]` float32 at a time."""
        for start in range(0, len(self._stored_NE), size):
            yield self._to_float32(self._stored_NE[start : start + size])

    def _to_float32(self, stored_nE: np.ndarray) -> Vectors:
        vectors_nE: Vectors = np.array(stored_nE, dtype=np.float32)
        if self._scale != 1:
            vectors_nE *= self._scale
        return vectors_nE


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


def write_vectors(
    path: Path,
    blocks: Callable[[], Iterator[Vectors]],
    shape: tuple[int, int],
    vector_type: VectorType,
) -> VectorsInfo:
    """Write the vectors of a version; OSError if there is no space.

    Args:
        path: the file.
        blocks: gives all vectors in order, `[n,E]` float32 at a time; called twice for int8.
        shape: `(N, E)`.
        vector_type: of the numbers stored; int8 has one scale for all, its largest component / 127.
    """
    scale = 1.0
    if vector_type == "int8":
        largest = max(float(np.abs(block_nE).max()) for block_nE in blocks())
        scale = float(np.float32(largest / 127))
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(vector_type)),
        "fortran_order": False,
        "shape": shape,
    }
    with path.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        for block_nE in blocks():
            stored_nE = np.rint(block_nE / np.float32(scale)) if scale != 1 else block_nE
            handle.write(stored_nE.astype(vector_type).tobytes())
    return VectorsInfo(type=vector_type, scale=scale)
