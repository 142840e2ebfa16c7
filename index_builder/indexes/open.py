"""Opening an index for search, on a GPU where there is one with room for it."""

from __future__ import annotations

import logging
from pathlib import Path

import faiss
import numpy as np

from index_builder.indexes.approximate import ApproximateIndex
from index_builder.indexes.base import Proposer, SearchIndex
from index_builder.indexes.cpu import CpuProposer
from index_builder.indexes.effort import effort_of
from index_builder.indexes.exact import ExactIndex
from index_builder.indexes.faiss_file import read_index
from index_builder.indexes.footprint import gpu_bytes
from index_builder.indexes.gpu import (
    GpuMemoryError,
    GpuProposer,
    Gpus,
    check_memory,
    find_gpu,
    memory_errors,
)
from index_builder.indexes.scan import VectorScan
from index_builder.manifest import IndexInfo
from index_builder.vectors import StoredVectors

logger = logging.getLogger(__name__)


def open_index(
    path: Path,
    info: IndexInfo,
    vectors: StoredVectors,
    *,
    device: str = "auto",
    gpus: Gpus | None = None,
) -> SearchIndex:
    """Open an index written by `build_index`; check its sha256 before.

    Args:
        path: the index's file.
        info: the manifest's word about it.
        vectors: the vectors it was built from; scores are computed from these.
        device: `auto` searches on the first GPU that FAISS sees if the index fits there; `cpu`,
            `cuda` or `cuda:N`.
        gpus: those that FAISS sees; others in tests.

    Raises:
        GalleryError: if the file is damaged, or is not the index that `info` describes.
        InputError: if the device does not exist.
        GpuMemoryError: if the GPU asked for has too little memory (with `auto` the CPU is used).
    """
    return searchable(read_index(path, info, vectors.shape), info, vectors, device, gpus or Gpus())


def searchable(
    index: faiss.Index, info: IndexInfo, vectors: StoredVectors, device: str, gpus: Gpus
) -> SearchIndex:
    """A FAISS index in main memory with exact scores, and its copy on a GPU if there is one."""
    # FAISS rounds the queries of int8 to whole numbers if E is a multiple of 16: not exact
    scanned = info.kind == "flat" and vectors.stored_NE.dtype == np.int8
    proposer: Proposer = VectorScan(vectors) if scanned else CpuProposer(index)
    gpu = None if info.kind == "hnsw" else find_gpu(device, gpus)
    if gpu is not None:
        strict = device != "auto"
        proposer = _on_gpu(index, info, vectors, gpu, gpus, proposer, strict=strict)
    if info.kind == "flat":
        return ExactIndex(proposer, vectors)
    return ApproximateIndex(proposer, vectors, effort_of(info.search))


def _on_gpu(
    index: faiss.Index,
    info: IndexInfo,
    vectors: StoredVectors,
    gpu: int,
    gpus: Gpus,
    cpu: Proposer,
    *,
    strict: bool,
) -> Proposer:
    """A copy on a GPU in front of the CPU's index; the CPU's alone where that is all there is."""
    if info.kind == "cagra" and not gpus.has_cagra():
        return cpu
    needed_bytes = gpu_bytes(info.kind, vectors.shape)
    what = f"the {info.kind} index"
    try:
        check_memory(gpus, gpu, needed_bytes, what)
        with memory_errors(what, needed_bytes):
            flat = info.kind == "flat"
            copy = gpus.flat(vectors, gpu) if flat else gpus.to_gpu(index, gpu)
    except GpuMemoryError as err:
        if strict:
            raise
        logger.warning("searching on the CPU: %s", err)
        return cpu
    return GpuProposer(*copy, gpus, cpu, strict=strict)
