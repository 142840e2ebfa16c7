"""Recall and latency of an approximate index in Milvus, beside the gallery it was exported from."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np

from index_builder.manifest import Measured
from index_builder.vectors import Rows, VectorRows, Vectors

_SAMPLE = 200
_K = 10


class Searches(Protocol):
    """What can be asked for the best rows."""

    def search(self, query_QE: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Scores and rows, best first."""
        ...


def measure(index: Searches, reference: Searches, vectors: VectorRows) -> Measured:
    """Ask both for the ten best rows of a sample of their own vectors, one at a time."""
    sample = np.unique(np.linspace(0, vectors.shape[0] - 1, _SAMPLE).astype(np.int64))
    query_QE = vectors.rows(sample)
    found_QK, latency_ms = _timed(index, query_QE)
    expected_QK, exact_ms = _timed(reference, query_QE)
    pairs = zip(found_QK, expected_QK, strict=True)
    shared = sum(len(set(found) & set(expected)) for found, expected in pairs)
    return Measured(
        num_queries=len(query_QE),
        recall_at_10=shared / expected_QK.size,
        latency_ms=latency_ms,
        exact_latency_ms=exact_ms,
        bytes=0,  # Milvus does not tell how much it needs
    )


def _timed(index: Searches, query_QE: Vectors) -> tuple[Rows, float]:
    """Rows of each query, and the median time of one in ms."""
    rows, times_ms = [], []
    for query_E in query_QE:
        start_s = time.perf_counter()
        rows.append(index.search(query_E[None], _K)[1][0])
        times_ms.append(1000 * (time.perf_counter() - start_s))
    return np.array(rows), round(float(np.median(times_ms)), 3)
