"""How many threads FAISS takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import faiss


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many FAISS threads for what this thread calls, and those of before afterwards."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def at_most(num_queries: int) -> AbstractContextManager[None]:
    """One thread for each query, as long as there are some.

    FAISS divides work by queries: more threads than these wait for each other. Of 100,000 vectors
    one query takes 3.4 ms with one thread and 8.6 ms with two. From some queries on it calls
    OpenBLAS, which must not be given other numbers of threads while another thread is in it.
    """
    if num_queries >= faiss.cvar.distance_compute_blas_threshold:
        return nullcontext()
    return threads(max(1, min(num_queries, faiss.omp_get_max_threads())))
