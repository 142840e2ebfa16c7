"""How many threads FAISS takes, and from when on it multiplies matrices.

What is set here is FAISS's own, for the whole process: it has no other place for it.

Shape letters: Q queries, E dimensions.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import faiss

_PRODUCT_WORK = 16 * 256  # Q x E
_BLOCK_QUERIES = 256
_BLOCK_ROWS = 16 * 1024

_one_product = threading.Lock()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many FAISS threads for what this thread calls, and those of before afterwards."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def at_most(num_queries: int) -> Iterator[None]:
    """One thread for each query, as long as there are some.

    FAISS divides work by queries: more threads than these wait for each other. Of 100,000 vectors
    one query takes 3.4 ms with one thread and 8.6 ms with two.
    """
    with threads(max(1, min(num_queries, faiss.omp_get_max_threads()))):
        yield


@contextmanager
def product_threads(num_queries: int, dim: int) -> Iterator[None]:
    """The same where FAISS compares float32 vectors with all queries: many are a product.

    A product has all threads: OpenBLAS must not be given other numbers of them while another thread
    is in it. It also lets one product wait for another, so there is one at a time.
    """
    if num_queries * dim < _product_work():
        with at_most(num_queries):
            yield
    else:
        with _one_product:
            yield


@functools.cache
def _product_work() -> int:
    """Q x E from which on FAISS multiplies matrices, which it is told here.

    By itself it does so from 128,000 on. Of 100,000 vectors of 256 dimensions 16 queries take 12 ms
    as a product and 29 ms otherwise, and 64 take 25 and 130. Its threads meet after each block of
    vectors, and late on cores that do something else as well: with 16,384 rows in a block, not
    1,024, a server under load answers a quarter more. A block of scores has 16 MiB as before.
    """
    faiss.cvar.distance_compute_blas_query_bs = _BLOCK_QUERIES
    faiss.cvar.distance_compute_blas_database_bs = _BLOCK_ROWS
    faiss.cvar.distance_compute_blas_threshold = _PRODUCT_WORK
    return _PRODUCT_WORK
