"""Trying an opened version before it is served: whole files can still hold the wrong thing.

A few stored vectors are searched for, and each must come back first, with the score of a unit
vector and itself. That fails where the index belongs to other vectors, and where rows, items and
vectors are not in one order.

Shape letters: n rows tried, Q queries, K results, F frames, E dimensions.
"""

from __future__ import annotations

import numpy as np

from cots_model.errors import GalleryError
from index_builder.gallery import Gallery
from index_builder.vectors import NORM_TOLERANCE, Rows, Vectors

_NUM_TRIED = 16
_NUM_HITS = 10
_LEAST_SHARE = 0.5  # of an approximate index; one that belongs to other vectors finds next to none
_ROUNDING = 1e-5


class SelfTestError(GalleryError):
    """A version does not answer as it must."""


def self_test(gallery: Gallery, probe_QE: Vectors | None = None) -> None:
    """Search a gallery for what it holds, and for `probe_QE`.

    Args:
        gallery: just opened.
        probe_QE: `[Q,E]` float32 unit vectors of the model that will embed the queries.

    Raises:
        SelfTestError: naming what came out and what must.
    """
    rows_n = np.unique(np.linspace(0, len(gallery) - 1, _NUM_TRIED).astype(np.int64))
    vectors_nE = gallery.vectors.rows(rows_n)
    tolerance = NORM_TOLERANCE[gallery.manifest.vectors.type]
    _check_lengths(gallery, vectors_nE, tolerance)
    _check_found(gallery, rows_n, vectors_nE, tolerance)
    _check_items(gallery, rows_n)
    if gallery.frames is not None:
        scores_nF = gallery.frames.scores(vectors_nE[0], rows_n)
        if not np.isfinite(scores_nF).all():
            raise _failed(gallery, "the score of a frame is no finite number")
    if probe_QE is not None:
        _check_probe(gallery, probe_QE)


def _check_lengths(gallery: Gallery, vectors_nE: Vectors, tolerance: float) -> None:
    lengths_n = np.linalg.norm(vectors_nE, axis=1)
    worst = float(lengths_n[np.argmax(np.abs(lengths_n - 1))])
    if not abs(worst - 1) <= tolerance + _ROUNDING:  # NaN included
        raise _failed(gallery, f"a stored vector has length {worst:.4f} instead of 1")


def _check_found(gallery: Gallery, rows_n: Rows, vectors_nE: Vectors, tolerance: float) -> None:
    """Each vector finds itself, or another that is no worse, as copies of a picture are."""
    scores_nK, rows_nK = gallery.search(vectors_nE, min(_NUM_HITS, len(gallery)))
    own_n = np.square(vectors_nE.astype(np.float64)).sum(axis=1)
    best_n = scores_nK[:, 0]
    found_n = best_n >= own_n - _ROUNDING
    least = len(rows_n) if gallery.exact else int(np.ceil(_LEAST_SHARE * len(rows_n)))
    if int(found_n.sum()) < least:
        raise _failed(
            gallery,
            f"of {len(rows_n)} stored vectors {int(found_n.sum())} come back first, and "
            f"{least} must",
        )
    if not np.all(np.abs(best_n[found_n] - 1) <= 2 * tolerance + _ROUNDING):
        worst = float(best_n[found_n][np.argmax(np.abs(best_n[found_n] - 1))])
        raise _failed(gallery, f"a stored vector has score {worst:.4f} with itself instead of 1")
    if rows_nK.min() < 0 or rows_nK.max() >= len(gallery):
        raise _failed(gallery, "a search gives rows that do not exist")


def _check_items(gallery: Gallery, rows_n: Rows) -> None:
    for row, item in zip(rows_n.tolist(), gallery.items(rows_n.tolist()), strict=True):
        if gallery.row(item.id) != row:
            raise _failed(gallery, f"item {item.id!r} of row {row} is found in another row")


def _check_probe(gallery: Gallery, probe_QE: Vectors) -> None:
    dim = gallery.manifest.dim
    if probe_QE.shape[1] != dim:
        raise _failed(
            gallery, f"its vectors have {dim} dimensions and the model's {probe_QE.shape[1]}"
        )
    scores_QK, _ = gallery.search(probe_QE, min(_NUM_HITS, len(gallery)))
    if not np.isfinite(scores_QK).all() or (np.diff(scores_QK, axis=1) > 0).any():
        raise _failed(gallery, "the scores of a query are not finite numbers, best first")


def _failed(gallery: Gallery, what: str) -> SelfTestError:
    return SelfTestError(
        f"version {gallery.version} of gallery {gallery.name} failed its self-test: {what}; "
        "build the gallery again"
    )
