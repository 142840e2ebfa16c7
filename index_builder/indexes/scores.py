"""Scores that depend on nothing but the two vectors: not on the batch, the BLAS or the GPU.

Shape letters: N rows, E dimensions, W rows proposed.
"""

from __future__ import annotations

import numpy as np

from index_builder.vectors import Rows, VectorRows, Vectors


def exact_scores(query_E: Vectors, vectors_NE: Vectors) -> Vectors:
    """Dot products `[N]`: summed in float64 row by row, rounded once to float32."""
    products_NE = vectors_NE.astype(np.float64) * query_E.astype(np.float64)
    scores: Vectors = products_NE.sum(axis=1).astype(np.float32)
    return scores


def rank(query_E: Vectors, rows_W: Rows, vectors: VectorRows) -> tuple[Vectors, Rows]:
    """Rows by their exact scores, best first, equal ones by row; places without a row are left out.

    Returns:
        scores float32 and rows int64, at most `[W]`.
    """
    rows_W = np.sort(rows_W[rows_W >= 0])
    scores_W = exact_scores(query_E, vectors.rows(rows_W))
    order = np.argsort(-scores_W, kind="stable")
    return scores_W[order], rows_W[order]
