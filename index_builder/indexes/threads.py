"""How many threads FAISS takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import faiss

_COUNTS_DIMENSIONS = faiss.cvar.distance_compute_blas_threshold > 1000
"""FAISS 1.15 multiplies from 128,000 queries x dimensions on, older ones from 20 queries on."""

if _COUNTS_DIMENSIONS:
    # Of 100,000 vectors of 256 dimensions, 16 queries take 12 ms for 29, and 64 take 25 for 130.
    faiss.cvar.distance_compute_blas_threshold = 16 * 256

# Threads meet after each block of vectors. On cores that do something else as well they meet late:
# with 16 times the rows of FAISS's own blocks, a server under load answers a quarter more.
faiss.cvar.distance_compute_blas_database_bs = 16 * 1024


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many FAISS threads for what this thread calls, and those of before afterwards."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def at_most(num_queries: int, dim: int) -> AbstractContextManager[None]:
    """One thread for each query, as long as there are some.

    FAISS divides work by queries: more threads than these wait for each other. Of 100,000 vectors
    one query takes 3.4 ms with one thread and 8.6 ms with two. Many queries are a matrix product,
    and OpenBLAS must not be given other numbers of threads while another thread is in it.
    """
    if _is_product(num_queries, dim):
        return nullcontext()
    return threads(max(1, min(num_queries, faiss.omp_get_max_threads())))


def _is_product(num_queries: int, dim: int) -> bool:
    """Whether FAISS multiplies matrices instead of comparing each query with each vector."""
    work = num_queries * dim if _COUNTS_DIMENSIONS else num_queries
    return work >= faiss.cvar.distance_compute_blas_threshold
