"""Which index `auto` takes, and why, in words.

Shape letters: N rows, E dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

from cots_model.errors import InputError
from index_builder.indexes.base import IndexRequest
from index_builder.indexes.footprint import gpu_build_bytes, index_bytes
from index_builder.indexes.gpu import Gpus, find_gpu
from index_builder.indexes.memory import available_bytes
from index_builder.manifest import IndexKind

# Measured by benchmarks/index_recall.py; the figures behind them are in docs/indexes.md.
EXACT_MS_PER_MILLION_COMPONENTS = 0.25
MOST_EXACT_MS = 25.0
GPU_EXACT_COMPONENTS = 2_560_000_000  # 10 million vectors of 256: 10 GB that a GPU reads in 5 ms
MOST_GRAPH_ROWS = 2_000_000  # one thread links 3,000 a second of 200,000, fewer of more
MEMORY_SHARE = 0.5  # of what is available: two versions are open while one replaces the other


@dataclass(frozen=True)
class Choice:
    """A kind, and in words why.

    Attributes:
        kind: which index.
        reason: empty if it was asked for by name.
    """

    kind: IndexKind
    reason: str = ""


def choose(
    request: IndexRequest,
    shape: tuple[int, int],
    gpus: Gpus,
    free_bytes: int | None = None,
) -> Choice:
    """The kind that a request means over `(N, E)` vectors.

    Args:
        request: what was asked for.
        shape: of the vectors.
        gpus: those that FAISS sees.
        free_bytes: main memory that may be used; what is available if not given.

    Raises:
        InputError: for `cagra` where FAISS cannot build it, or a device that does not exist.
    """
    gpu = find_gpu(request.device, gpus)
    if request.kind == "cagra" and (gpu is None or not gpus.has_cagra()):
        raise InputError(
            "a cagra index is built on an NVIDIA GPU, by a FAISS with cuVS (conda's "
            "faiss-gpu-cuvs), and one of them is not here; use --index hnsw, which searches a "
            "graph on the CPU, or auto"
        )
    if request.kind != "auto":
        return Choice(request.kind)
    free_bytes = available_bytes() if free_bytes is None else free_bytes
    if gpu is not None:
        on_gpu = _for_gpu(shape, gpus, gpu, free_bytes)
        if on_gpu is not None:
            return on_gpu
    return _for_cpu(request, shape, free_bytes)


def exact_ms(shape: tuple[int, int]) -> float:
    """About how long an exact search of one query takes on one CPU core."""
    return EXACT_MS_PER_MILLION_COMPONENTS * shape[0] * shape[1] / 1e6


def _for_gpu(shape: tuple[int, int], gpus: Gpus, gpu: int, free_bytes: int | None) -> Choice | None:
    """`None` where nothing better than on the CPU fits the GPU."""
    gpu_free = gpus.free_bytes(gpu)
    small = shape[0] * shape[1] <= GPU_EXACT_COMPONENTS
    kinds: list[tuple[IndexKind, str]] = [
        ("flat", "a GPU searches so many exactly in a few milliseconds"),
        ("cagra", "too many for an exact search; its graph fits the GPU"),
        ("ivf", "too many for an exact search; this FAISS builds no cagra"),
    ]
    for kind, why in kinds:
        possible = small if kind == "flat" else kind != "cagra" or gpus.has_cagra()
        fits = gpu_free is None or gpu_build_bytes(kind, shape) <= gpu_free
        if possible and fits and _fits(index_bytes(kind, shape), free_bytes):
            on_cpu = f"; on a CPU about {exact_ms(shape):,.0f} ms" if kind == "flat" else ""
            return Choice(kind, f"{shape[0]:,} vectors, GPU {gpu}: {why}{on_cpu}")
    return None


def _for_cpu(request: IndexRequest, shape: tuple[int, int], free_bytes: int | None) -> Choice:
    num_rows = shape[0]
    time_ms = exact_ms(shape)
    asked = f"{num_rows:,} vectors"
    if time_ms <= MOST_EXACT_MS and _fits(index_bytes("flat", shape, request.vectors), free_bytes):
        about = "under a millisecond" if time_ms < 1 else f"about {time_ms:.0f} ms"
        return Choice("flat", f"{asked}: an exact search takes {about}, so nothing need be missed")
    slow = f"{asked}: an exact search would take about {time_ms:,.0f} ms of one core"
    graph_bytes, lists_bytes = (index_bytes(kind, shape) for kind in ("hnsw", "ivf"))
    if not _fits(lists_bytes, free_bytes):
        return Choice("ivfpq", f"{slow}; {_gib(lists_bytes)} of vectors {_too_much(free_bytes)}")
    if not _fits(graph_bytes, free_bytes):
        return Choice("ivf", f"{slow}; {_gib(graph_bytes)} of graph {_too_much(free_bytes)}")
    if num_rows > MOST_GRAPH_ROWS:
        return Choice("ivf", f"{slow}; a graph of so many takes one thread too long to build")
    return Choice("hnsw", f"{slow}; a graph of {_gib(graph_bytes)} fits in memory")


def _fits(size_bytes: int, free_bytes: int | None) -> bool:
    return free_bytes is None or size_bytes <= free_bytes * MEMORY_SHARE


def _too_much(free_bytes: int | None) -> str:
    free = "" if free_bytes is None else f" of the {_gib(free_bytes)} available"
    return f"are more than {MEMORY_SHARE:.0%}{free}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:,.1f} GiB"
