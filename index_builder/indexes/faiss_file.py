"""`index.faiss`: written here, and read as what it may be, a damaged or hostile file.

Before FAISS parses it, the file's size and header are compared with the manifest; while it parses,
no vector in it may be longer than the file; afterwards everything that a search follows
(links, list entries, row numbers) is checked to lead inside.
"""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import faiss

from cots_model.errors import GalleryError
from index_builder.indexes.kinds import code_bytes, num_lists
from index_builder.indexes.structure import fault_of
from index_builder.manifest import IndexInfo

_HEADER = struct.Struct("<4siqqqBi")  # name, E, N, two unused, trained, metric
_NAMES = {
    "flat": (b"IxFI", b"IxSQ"),
    "hnsw": (b"IHNf",),
    "ivf": (b"IwFl",),
    "ivfpq": (b"IwPQ",),
    "cagra": (b"IHc2", b"IHNc"),
}
_SPARE_BYTES = 1 << 20
_BYTES_PER_ROW = 1024  # links of all levels, offsets, ids: a generous bound
# tables that FAISS would compute for distances, which inner products have no use for
_FLAGS = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE | faiss.IO_FLAG_PQ_SKIP_SDC_TABLE
# mapped, so that processes share them; of lists that are mapped FAISS would not check the length
MAPPED = frozenset({"flat", "hnsw"})
_parsing = threading.Lock()  # FAISS has one limit for the whole process


def write_index(index: faiss.Index, path: Path) -> None:
    """Save a CPU index.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as err:  # FAISS's own type for a full disk
        raise OSError(f"{path} could not be written: {err}") from err


def read_index(path: Path, info: IndexInfo, shape: tuple[int, int]) -> faiss.Index:
    """Load an index over `(N, E)` vectors.

    Raises:
        GalleryError: if the file is damaged, or is not the index that `info` describes.
    """
    problem = _unfit(path, info, shape)
    if problem is None:
        index = _parse(path, info, max(path.stat().st_size, _table_bytes(info, shape)))
        problem = fault_of(index, info, shape)
    if problem:
        raise GalleryError(f"{path} is damaged: {problem}; build the gallery again")
    return index


def _unfit(path: Path, info: IndexInfo, shape: tuple[int, int]) -> str | None:
    """What is wrong with the file by its size and first bytes."""
    num_rows, dim = shape
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as handle:
            header = handle.read(_HEADER.size)
    except OSError as err:
        return f"it cannot be read ({err.strerror})"
    most_bytes = num_rows * (dim * 4 + _BYTES_PER_ROW) + 2 * 256 * dim * 4 + _SPARE_BYTES
    if len(header) < _HEADER.size or size_bytes > most_bytes:
        return f"it holds {size_bytes:,} bytes, which does not fit {num_rows:,} vectors of {dim}"
    name, its_dim, its_rows, _, _, trained, metric = _HEADER.unpack(header)
    if name not in _NAMES[info.kind]:
        return f"it starts with {name!r}, which is no {info.kind} index"
    if (its_rows, its_dim) != shape:
        return f"it is over {its_rows:,} vectors of {its_dim}, not {num_rows:,} of {dim}"
    if not trained or metric != faiss.METRIC_INNER_PRODUCT:
        return "it is not an index for inner products that is ready to search"
    return None


def _parse(path: Path, info: IndexInfo, most_bytes: int) -> faiss.Index:
    flags = _FLAGS | (faiss.IO_FLAG_MMAP_IFC if info.kind in MAPPED else 0)
    with _parsing:
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(most_bytes)
        try:
            return faiss.read_index(str(path), flags)
        except Exception as err:  # FAISS raises bare RuntimeError, or what SWIG makes of it
            raise GalleryError(
                f"{path} is damaged ({_short(err)}); build the gallery again"
            ) from err
        finally:
            faiss.set_deserialization_vector_byte_limit(before)


def _table_bytes(info: IndexInfo, shape: tuple[int, int]) -> int:
    """What FAISS's limit must allow for a table that it then does not make (see `_FLAGS`)."""
    if info.kind != "ivfpq":
        return 0
    return num_lists(shape[0]) * code_bytes(shape[1]) * 256 * 4 + _SPARE_BYTES


def _short(err: Exception) -> str:
    """The reason in FAISS's message, without its source file and line."""
    return str(err).split("Error: ")[-1].split("\n")[0] or type(err).__name__
