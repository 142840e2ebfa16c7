"""Building an index over the vectors of a gallery, and measuring it.

The figures that go into the manifest are the CPU's: any reader has one, and an index that was built
on a GPU is as often searched without.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from index_builder.indexes.approximate import ApproximateIndex
from index_builder.indexes.base import IndexRequest
from index_builder.indexes.choose import Choice, choose
from index_builder.indexes.cpu import CpuProposer
from index_builder.indexes.faiss_file import write_index
from index_builder.indexes.footprint import gpu_build_bytes
from index_builder.indexes.gpu import GpuMemoryError, Gpus, check_memory, find_gpu, memory_errors
from index_builder.indexes.kinds import (
    Progress,
    add_rows,
    empty_index,
    flat_index,
    parameters_of,
    train,
    training_rows,
)
from index_builder.indexes.measure import (
    FEWEST_QUERIES,
    MOST_QUERIES,
    Tuned,
    make_sample,
    measure,
    tune,
)
from index_builder.indexes.open import searchable
from index_builder.manifest import IndexInfo, IndexKind, Parameter
from index_builder.vectors import StoredVectors

logger = logging.getLogger(__name__)


def build_index(
    request: IndexRequest,
    vectors: StoredVectors,
    path: Path,
    *,
    progress: Progress | None = None,
    gpus: Gpus | None = None,
) -> IndexInfo:
    """Build, save, tune and measure an index.

    Args:
        request: which.
        vectors: all of the gallery.
        path: the file to write.
        progress: called with the number of vectors added since the last call.
        gpus: those that FAISS sees; others in tests.

    Returns:
        what belongs into the manifest.

    Raises:
        InputError: for a kind or device that is not to be had here.
        GpuMemoryError: if the GPU asked for has too little memory (with `auto` the CPU is used).
        OSError: if the file cannot be written.
    """
    gpus = gpus or Gpus()
    choice = choose(request, vectors.shape, gpus)
    parameters = parameters_of(choice.kind, vectors.shape)
    index = _make(request, choice, parameters, vectors, gpus, progress or _silent)
    write_index(index, path)
    info = IndexInfo(kind=choice.kind, parameters=parameters, reason=choice.reason)
    if not vectors.shape[0]:  # an empty share of a gallery, which is never asked
        return info
    return _measured(index, info, vectors, request.target_recall, path.stat().st_size)


def _make(
    request: IndexRequest,
    choice: Choice,
    parameters: dict[str, Parameter],
    vectors: StoredVectors,
    gpus: Gpus,
    progress: Progress,
) -> Any:
    """The index in main memory; a GPU helps where there is one."""
    kind, gpu = choice.kind, find_gpu(request.device, gpus)
    if kind == "flat":
        return flat_index(vectors, progress)  # nothing to compute
    if gpu is not None and kind != "hnsw":
        try:
            return _make_on_gpu(kind, parameters, vectors, gpus, gpu, progress)
        except GpuMemoryError as err:
            if request.device != "auto" or kind == "cagra":
                raise
            logger.warning("building on the CPU: %s", err)
    index = empty_index(kind, vectors.shape[1], parameters)
    if "num_lists" in parameters:
        train(index, training_rows(kind, vectors, int(parameters["num_lists"])))
    add_rows(index, vectors, progress, reproducible=request.reproducible)
    return index


def _make_on_gpu(
    kind: IndexKind,
    parameters: dict[str, Parameter],
    vectors: StoredVectors,
    gpus: Gpus,
    gpu: int,
    progress: Progress,
) -> Any:
    """Trained and filled on a GPU, and brought back to main memory."""
    needed_bytes = gpu_build_bytes(kind, vectors.shape)
    what = f"building the {kind} index"
    check_memory(gpus, gpu, needed_bytes, what)
    with memory_errors(what, needed_bytes):
        if kind == "cagra":
            index = gpus.cagra(vectors, int(parameters["links"]), gpu)
            progress(vectors.shape[0])
            return index
        empty = empty_index(kind, vectors.shape[1], parameters)
        on_gpu, _resources = gpus.to_gpu(empty, gpu)
        on_gpu.train(training_rows(kind, vectors, int(parameters["num_lists"])))
        for block_nE in vectors.blocks():
            on_gpu.add(block_nE)
            progress(len(block_nE))
        return gpus.to_cpu(on_gpu)


def _measured(
    index: Any, info: IndexInfo, vectors: StoredVectors, target: float, size_bytes: int
) -> IndexInfo:
    """With search parameters and figures."""
    most = FEWEST_QUERIES if info.kind == "flat" else MOST_QUERIES
    first, second = make_sample(vectors, most=most).halves()
    if info.kind != "flat":
        attempt = partial(ApproximateIndex, CpuProposer(index), vectors)
        tuned = tune(info.kind, attempt, first, target)
        info = info.model_copy(update={"search": tuned.effort.to_parameters()})
        info = info.model_copy(update={"reason": _reason(info, tuned, target)})
    found = measure(searchable(index, info, vectors, "cpu", Gpus()), vectors, second, size_bytes)
    return info.model_copy(update={"measured": found})


def _reason(info: IndexInfo, tuned: Tuned, target: float) -> str:
    if tuned.reached:
        return info.reason
    missed = f"no search parameters reach a recall of {target:g}; these are the widest tried"
    return f"{info.reason}; {missed}" if info.reason else missed


def _silent(count: int) -> None:
    del count
