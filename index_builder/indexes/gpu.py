"""Every call of faiss-gpu: building and searching on a GPU, and what happens if it is too small.

FAISS's limits there: at most 2,048 results and 2,048 probes, and one resources object serves one
thread at a time. Whatever is outside them is left to the index in main memory.

Shape letters: Q queries, E dimensions, W rows proposed.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import torch

from cots_model.errors import CotsError, InputError
from index_builder.indexes.base import Proposer
from index_builder.indexes.effort import Effort
from index_builder.vectors import Rows, StoredVectors, Vectors

MOST_RESULTS = 2048
MOST_PROBES = 2048
SCRATCH_BYTES = 256 << 20
_CAGRA_LIST = 512  # longest list of candidates of one search
_HALF_TABLES_FROM = 32  # code bytes; longer tables do not fit a GPU's shared memory in float32

_gpu_faiss: Any = faiss  # what FAISS has on a GPU is not in its types

logger = logging.getLogger(__name__)


class GpuMemoryError(CotsError):
    """The GPU has too little free memory for an index."""


class Gpus:
    """The GPUs that FAISS sees."""

    def count(self) -> int:
        """How many; 0 for a FAISS built for the CPU alone."""
        found: int = faiss.get_num_gpus()
        return found

    def free_bytes(self, gpu: int) -> int | None:
        """Free memory of one; `None` if PyTorch, which is asked, does not see it."""
        if gpu >= torch.cuda.device_count():
            return None
        return torch.cuda.mem_get_info(gpu)[0]

    def has_cagra(self) -> bool:
        """Whether this FAISS can build CAGRA graphs."""
        return hasattr(faiss, "GpuIndexCagra")

    def to_gpu(self, index: faiss.Index, gpu: int) -> tuple[faiss.Index, object]:
        """A copy of a CPU index on a GPU, and the resources that must live as long as it."""
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(SCRATCH_BYTES)
        options = _gpu_faiss.GpuClonerOptions()
        options.useFloat16LookupTables = (
            isinstance(index, faiss.IndexIVFPQ) and index.pq.M > _HALF_TABLES_FROM
        )
        return faiss.index_cpu_to_gpu(resources, gpu, index, options), resources

    def flat(self, vectors: StoredVectors, gpu: int) -> tuple[faiss.Index, object]:
        """An exact index of the vectors in float32 on a GPU, and its resources."""
        index, resources = self.to_gpu(faiss.IndexFlatIP(vectors.shape[1]), gpu)
        for block_nE in vectors.blocks():
            index.add(block_nE)
        return index, resources

    def to_cpu(self, index: faiss.Index) -> faiss.Index:
        """A CPU index with the same rows."""
        return faiss.index_gpu_to_cpu(index)

    def cagra(self, vectors: StoredVectors, links: int, gpu: int) -> faiss.Index:
        """Build a CAGRA graph on a GPU; as a CPU index with upper levels to start a search from.

        Without these (`base_level_only`) a search would start at random rows, and find others
        each time.
        """
        resources = faiss.StandardGpuResources()
        config = _gpu_faiss.GpuIndexCagraConfig()
        config.device = gpu
        config.graph_degree = 2 * links
        config.intermediate_graph_degree = 4 * links
        num_rows, dim = vectors.shape
        built = _gpu_faiss.GpuIndexCagra(resources, dim, faiss.METRIC_INNER_PRODUCT, config)
        built.train(next(vectors.blocks(num_rows)))
        index = _gpu_faiss.IndexHNSWCagra(dim, links, faiss.METRIC_INNER_PRODUCT)
        index.base_level_only = False
        built.copyTo(index)
        copied: faiss.Index = index
        return copied

    def search_parameters(
        self, index: faiss.Index, effort: Effort, width: int
    ) -> faiss.SearchParameters | None:
        """What goes with a search of a GPU index."""
        parameters: faiss.SearchParameters | None = None
        if isinstance(index, _gpu_faiss.GpuIndexIVF):
            num_probes = min(effort.num_probes, index.nlist)
            parameters = _gpu_faiss.SearchParametersIVF(nprobe=num_probes)
        elif self.has_cagra() and isinstance(index, _gpu_faiss.GpuIndexCagra):
            kept = max(effort.ef_search, width)
            parameters = _gpu_faiss.SearchParametersCagra(itopk_size=kept)
        return parameters


class GpuProposer:
    """A copy of an index on a GPU; what the GPU does not do is left to the CPU's index."""

    def __init__(
        self, on_gpu: faiss.Index, resources: object, gpus: Gpus, cpu: Proposer, *, strict: bool
    ) -> None:
        """Hold both.

        Args:
            on_gpu: the index on the GPU.
            resources: what it needs to stay alive.
            gpus: whose it is.
            cpu: the same index in main memory.
            strict: whether memory that runs out is an error; else the CPU takes over for good.
        """
        self._index: faiss.Index | None = on_gpu
        self._resources: object | None = resources
        self._gpus = gpus
        self._cpu = cpu
        self._strict = strict
        self._lock = threading.Lock()

    def propose(self, query_QE: Vectors, width: int, effort: Effort) -> tuple[Vectors, Rows]:
        """Rough scores and rows `[Q,W]`; see `Proposer`."""
        probes, ef_search = effort.num_probes, effort.ef_search
        if width > MOST_RESULTS or probes > MOST_PROBES or (ef_search and width > _CAGRA_LIST):
            return self._cpu.propose(query_QE, width, effort)
        with self._lock:
            index = self._index
            if index is not None:
                try:
                    parameters = self._gpus.search_parameters(index, effort, width)
                    with memory_errors("a search"):
                        found: tuple[Vectors, Rows] = index.search(
                            query_QE, width, params=parameters
                        )
                    return found
                except GpuMemoryError as err:
                    if self._strict:
                        raise
                    logger.warning("searching on the CPU from now on: %s", err)
                    self._index = self._resources = None
        return self._cpu.propose(query_QE, width, effort)


def find_gpu(device: str, gpus: Gpus) -> int | None:
    """The number of the GPU that a device names; `None` for the CPU.

    A FAISS without GPUs does everything on the CPU, also if `cuda` is asked for: the model may
    well run there all the same.

    Raises:
        InputError: for a name that is no device, or a GPU that FAISS does not see.
    """
    kind, _, number = device.partition(":")
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", device):
        raise InputError(f"unknown device {device!r}; accepted: auto, cpu, cuda, cuda:N")
    count = gpus.count()
    if kind == "cpu" or not count:
        if kind == "cuda":
            logger.info("this FAISS sees no GPU; the index stays on the CPU")
        return None
    if int(number or 0) >= count:
        raise InputError(f"device {device!r} is not here (FAISS sees {count}); use cpu or auto")
    return int(number or 0)


def check_memory(gpus: Gpus, gpu: int, needed_bytes: int, what: str) -> None:
    """Make sure that a GPU has room.

    Raises:
        GpuMemoryError: naming what is needed, what is free, and what to do.
    """
    free_bytes = gpus.free_bytes(gpu)
    if free_bytes is not None and needed_bytes > free_bytes:
        raise GpuMemoryError(
            f"{what} needs about {needed_bytes:,} bytes on GPU {gpu}, which has {free_bytes:,} "
            "free; use --device cpu, another GPU (cuda:N), or --index ivfpq, which is smallest"
        )


@contextmanager
def memory_errors(what: str, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn FAISS's RuntimeError for memory that ran out into a `GpuMemoryError`."""
    try:
        yield
    except RuntimeError as err:
        if "memory" not in str(err).lower() and "alloc" not in str(err).lower():
            raise
        needed = f" of about {needed_bytes:,} bytes" if needed_bytes else ""
        raise GpuMemoryError(
            f"the GPU ran out of memory for {what}{needed}; use --device cpu, another GPU "
            f"(cuda:N), or --index ivfpq, which is smallest ({str(err).splitlines()[0][:200]})"
        ) from err
