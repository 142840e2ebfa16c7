"""An index beside an exact search: tuned on one half of a sample, measured on the other.

Queries are not the gallery's own vectors, which every index finds, nor are there sentences to ask
with. They are made about as far from the gallery as sentences are from pictures: each is a vector
of the gallery turned to a cosine of 0.6, in a direction drawn with the gallery's own covariance.
What such queries find is about what captions of another data set find in `ivf` and `ivfpq`, and
less than these find in `hnsw` (docs/indexes.md); other directions tried were further off.

Shape letters: Q queries, N rows, E dimensions, K results, P vectors that directions are mixed of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from index_builder.indexes.base import SearchIndex
from index_builder.indexes.effort import Effort
from index_builder.indexes.exact import ExactIndex
from index_builder.indexes.scan import VectorScan
from index_builder.manifest import IndexKind, Measured
from index_builder.vectors import VectorRows, Vectors

K = 10
QUERY_COSINE = 0.6
MOST_QUERIES = 1000
FEWEST_QUERIES = 100
_PRODUCTS = 200_000_000_000  # to score the sample exactly: some seconds of one core
_TIMED_EXACTLY = 20
_POOL = 2000
_MIXED = 64
_SEED = 0
# the least are those that a search of 10 takes anyway, for its margin of 32 more
_EFFORTS = (48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, *_EFFORTS)
_REFINES = (4, 6, 8, 12, 16, 24, 32, 48, 64)

Searchable = Callable[[Effort], SearchIndex]


@dataclass(frozen=True)
class Sample:
    """Queries, and how good their best rows are.

    Attributes:
        query_QE: unit vectors.
        tenth_Q: score of the last of the K best rows of each.
    """

    query_QE: Vectors
    tenth_Q: Vectors

    def halves(self) -> tuple[Sample, Sample]:
        """Every other query, and the rest."""
        return tuple(  # type: ignore[return-value]
            Sample(self.query_QE[start::2], self.tenth_Q[start::2]) for start in (0, 1)
        )


@dataclass(frozen=True)
class Tuned:
    """What came of tuning.

    Attributes:
        effort: the least that reached the target, or else the most.
        reached: whether the target was reached.
    """

    effort: Effort
    reached: bool


def make_sample(vectors: VectorRows, *, most: int = MOST_QUERIES) -> Sample:
    """Queries for these vectors, 100 to `most`, the fewer the larger the gallery."""
    wanted = _PRODUCTS // (vectors.shape[0] * vectors.shape[1])
    query_QE = make_queries(vectors, min(max(wanted, FEWEST_QUERIES), most))
    scores_QK, _ = ExactIndex(VectorScan(vectors), vectors).search(query_QE, K)
    return Sample(query_QE, scores_QK[:, -1])


def make_queries(vectors: VectorRows, count: int) -> Vectors:
    """Unit vectors `[count,E]`, each at `QUERY_COSINE` from a vector of the gallery."""
    rng = np.random.default_rng(_SEED)
    num_rows = vectors.shape[0]
    near_QE = _unit(vectors.rows(rng.integers(0, num_rows, count)))
    pool_PE = vectors.rows(rng.integers(0, num_rows, _POOL))
    pool_PE -= pool_PE.mean(axis=0)
    weight_QP = np.zeros((count, _POOL), np.float32)
    mixed_QM = rng.integers(0, _POOL, (count, _MIXED))
    np.put_along_axis(weight_QP, mixed_QM, rng.standard_normal((count, _MIXED), np.float32), 1)
    away_QE = weight_QP @ pool_PE + 1e-3 * rng.standard_normal(near_QE.shape, np.float32)
    away_QE = _unit(away_QE - (away_QE * near_QE).sum(axis=1, keepdims=True) * near_QE)
    sine = np.float32(np.sqrt(1 - QUERY_COSINE**2))
    return _unit(np.float32(QUERY_COSINE) * near_QE + sine * away_QE)


def tune(kind: IndexKind, searchable: Searchable, sample: Sample, target: float) -> Tuned:
    """The least effort whose recall, less its standard error, reaches the target."""
    if kind in ("hnsw", "cagra"):
        return _first(searchable, sample, target, (Effort(ef_search=ef) for ef in _EFFORTS))
    if kind == "ivf":
        return _first(searchable, sample, target, (Effort(num_probes=n) for n in _PROBES))
    most = _REFINES[-1]
    spare = (1 - target) / 2  # for what fewer candidates will lose
    probes = (Effort(num_probes=n, refine=most) for n in _PROBES)
    wide = _first(searchable, sample, target + spare, probes)
    refined = (replace(wide.effort, refine=refine) for refine in _REFINES)
    return _first(searchable, sample, target, refined)


def _first(
    searchable: Searchable, sample: Sample, target: float, efforts: Iterator[Effort]
) -> Tuned:
    for effort in efforts:
        recall_Q, _ = ask(searchable(effort), sample)
        error = float(recall_Q.std()) / np.sqrt(len(recall_Q))
        if recall_Q.mean() - error >= target:
            return Tuned(effort, reached=True)
    return Tuned(effort, reached=False)


def ask(index: SearchIndex, sample: Sample) -> tuple[Vectors, Vectors]:
    """Ask the queries one at a time.

    Returns:
        for each query `[Q]` the share of the K best rows that is found, where a row that scores as
        much as the last of the best counts as one of them, and the time in milliseconds.
    """
    recall_Q = np.empty(len(sample.query_QE), np.float32)
    ms_Q = np.empty(len(sample.query_QE), np.float32)
    for number, (query_E, tenth) in enumerate(zip(sample.query_QE, sample.tenth_Q, strict=True)):
        start = perf_counter()
        scores_1K, _ = index.search(query_E[None], K)
        ms_Q[number] = (perf_counter() - start) * 1000
        recall_Q[number] = (scores_1K[0] >= tenth).mean()
    return recall_Q, ms_Q


def measure(index: SearchIndex, vectors: VectorRows, sample: Sample, size_bytes: int) -> Measured:
    """Recall and the time of one query, beside an exact scan of the stored vectors."""
    scan = ExactIndex(VectorScan(vectors), vectors)
    few = Sample(sample.query_QE[:_TIMED_EXACTLY], sample.tenth_Q[:_TIMED_EXACTLY])
    recall_Q, ms_Q = ask(index, sample)
    _, exact_ms_Q = ask(scan, few)
    return Measured(
        num_queries=len(sample.query_QE),
        recall_at_10=round(float(recall_Q.mean()), 4),
        latency_ms=round(float(np.median(ms_Q)), 3),
        exact_latency_ms=round(float(np.median(exact_ms_Q)), 3),
        bytes=size_bytes,
    )


def _unit(vectors_QE: Vectors) -> Vectors:
    norms_Q1 = np.linalg.norm(vectors_QE, axis=1, keepdims=True)
    unit: Vectors = vectors_QE / np.maximum(norms_Q1, np.float32(1e-12))  # one dimension: nowhere
    return unit
