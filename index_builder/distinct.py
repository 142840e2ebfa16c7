"""Of hits that are nearly the same, the best.

A ranking is walked from its top, and every row stays out that is too near to one that stayed in.

Shape letters: W rows ranked, D rows kept, n and m rows of a block, P pairs, E dimensions.
"""

from __future__ import annotations

import numpy as np

from index_builder.indexes.base import OnBlock
from index_builder.indexes.scores import exact_scores
from index_builder.vectors import Rows, VectorRows, Vectors

_BLOCK = 256
_PAIRS = 8192


def distinct_places(
    vectors: VectorRows, rows_W: Rows, similarity: float, *, most: int, on_block: OnBlock
) -> Rows:
    """The places in a ranking that stay, at most `most` of them, int64.

    A row stays if its cosine with every row that stayed before it is below `similarity`. So the
    first places that stay are the same however long the ranking is.

    Args:
        vectors: of the gallery.
        rows_W: the ranking, best first.
        similarity: cosine from which on two rows are taken for one; well below 1, as the cosine of
            equal vectors is rounded, too.
        most: how many are wanted.
        on_block: called before each block; what it raises ends the walk.
    """
    kept_DE = np.empty((0, vectors.shape[1]), np.float32)
    places: list[int] = []
    for start in range(0, len(rows_W), _BLOCK):
        on_block()
        block_nE = _unit(vectors.rows(rows_W[start : start + _BLOCK]))
        fresh_n = ~_near(block_nE, kept_DE, similarity).any(axis=1)
        near_nn = _near(block_nE, block_nE, similarity)
        chosen: list[int] = []
        for place in np.flatnonzero(fresh_n).tolist():
            if not near_nn[place, chosen].any():
                chosen.append(place)
        places += [start + place for place in chosen]
        if len(places) >= most:
            break
        kept_DE = np.concatenate([kept_DE, block_nE[chosen]])
    return np.array(places[:most], np.int64)


def _unit(vectors_nE: Vectors) -> Vectors:
    """Of length 1, which rounding to float16 and int8 has moved."""
    unit_nE: Vectors = vectors_nE / np.linalg.norm(vectors_nE, axis=1, keepdims=True)
    return unit_nE


def _near(first_nE: Vectors, second_mE: Vectors, similarity: float) -> np.ndarray:
    """Whether the cosine of each pair reaches the bound, `[n,m]`.

    The float32 product decides but where its rounding could; there the pair is scored exactly.
    """
    product_nm = first_nE @ second_mE.T
    slack = 2 * first_nE.shape[1] * float(np.finfo(np.float32).eps)
    near_nm: np.ndarray = product_nm >= similarity
    first_P, second_P = np.nonzero(np.abs(product_nm - np.float32(similarity)) <= slack)
    for start in range(0, len(first_P), _PAIRS):
        some = slice(start, start + _PAIRS)
        first, second = first_P[some], second_P[some]
        scores = exact_scores(first_nE[first], second_mE[second])
        near_nm[first, second] = scores >= np.float32(similarity)
    return near_nm
