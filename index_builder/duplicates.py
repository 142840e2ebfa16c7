"""Items that are nearly the same: groups joined by pairs whose vectors' dot product is high enough.

    report = find_duplicates(Gallery.open(Path("photos")), DuplicateOptions(threshold=0.95))

Every pair is looked at, block by block, so that memory does not grow with the gallery but for a few
bytes per item. A group is a connected component: A and C are in one group if A is like B and B like
C. Galleries of more than `neighbours_above` items are searched through their index instead: only
each item's nearest neighbours are looked at, which the report says.

Shape letters: N rows, n and m some of them, E dimensions, K neighbours, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cots_model.errors import CotsError, InputError
from cots_model.images import read_size
from index_builder.duplicate_report import Duplicate, DuplicateGroup, DuplicateReport, Method
from index_builder.gallery import Gallery
from index_builder.indexes.exact import exact_scores
from index_builder.items import Item
from index_builder.manifest import VECTORS_FILE
from index_builder.vectors import Rows, StoredVectors, VectorRows, Vectors, create_array

Progress = Callable[[float], object]

_BLOCK = 2048
_QUERIES = 256


@dataclass(frozen=True, kw_only=True)
class DuplicateOptions:
    """What to look for.

    Attributes:
        threshold: two items whose dot product is at least this belong together.
        max_groups: how many groups are described, the largest first; None for all.
        max_pairs: more pairs than this are refused: the threshold is too low.
        neighbours_above: from how many items on the gallery's index is asked.
        neighbours: how many of each item's nearest are looked at then.
    """

    threshold: float = 0.95
    max_groups: int | None = None
    max_pairs: int = 10_000_000
    neighbours_above: int = 300_000
    neighbours: int = 64

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold}; above 0 and at most 1 is accepted")
        if self.max_groups is not None and self.max_groups < 1:
            raise InputError(f"max_groups is {self.max_groups}; at least 1 is accepted")
        if self.max_pairs < 1 or self.neighbours < 2 or self.neighbours_above < 0:
            raise InputError("max_pairs must be at least 1, neighbours 2 and neighbours_above 0")


def find_duplicates(
    gallery: Gallery, options: DuplicateOptions, *, progress: Progress = lambda _: None
) -> DuplicateReport:
    """Look for groups of nearly equal items; nothing is changed.

    Args:
        gallery: an open gallery.
        options: what to look for.
        progress: called with the share of the work done since the last call; they add up to 1.

    Raises:
        InputError: if there are more than `max_pairs` pairs.
        GalleryError: if the gallery cannot be read.
    """
    method: Method = "neighbours" if len(gallery) > options.neighbours_above else "exact"
    if method == "neighbours":
        found = _neighbours(gallery, options, progress)
        num_pairs, groups = _components(found, len(gallery), options)
    else:
        with _local_vectors(gallery) as vectors:
            found = _all_pairs(vectors, options.threshold, progress)
            num_pairs, groups = _components(found, len(gallery), options)
    listed = groups if options.max_groups is None else groups[: options.max_groups]
    return DuplicateReport(
        gallery=gallery.name,
        version=gallery.version,
        threshold=options.threshold,
        method=method,
        num_items=len(gallery),
        num_pairs=num_pairs,
        num_groups=len(groups),
        num_extra=sum(len(rows) - 1 for rows in groups),
        groups=tuple(_describe(gallery, rows) for rows in listed),
    )


@contextmanager
def _local_vectors(gallery: Gallery) -> Iterator[VectorRows]:
    """The gallery's vectors; those of a server are copied once, as every block is read often."""
    if gallery.manifest.index.kind != "milvus":
        yield gallery.vectors
        return
    with TemporaryDirectory() as folder:
        copy_NE = create_array(Path(folder) / VECTORS_FILE, gallery.vectors.shape, np.float32)
        start = 0
        for block_nE in gallery.vectors.blocks():
            copy_NE[start : start + len(block_nE)] = block_nE
            start += len(block_nE)
        yield StoredVectors(copy_NE)


def _all_pairs(
    vectors: VectorRows, threshold: float, progress: Progress
) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows (first < second) at or above the threshold, some at a time."""
    num_rows = vectors.shape[0]
    starts = range(0, num_rows, _BLOCK)
    share = 2 / (len(starts) * (len(starts) + 1))
    for start in starts:
        block_nE = _rows_from(vectors, start)
        for other in range(start, num_rows, _BLOCK):
            other_mE = block_nE if other == start else _rows_from(vectors, other)
            first_P, second_P = _close(block_nE, other_mE, threshold)
            if other == start:
                upper = first_P < second_P
                first_P, second_P = first_P[upper], second_P[upper]
            yield first_P + start, second_P + other
            progress(share)


def _rows_from(vectors: VectorRows, start: int) -> Vectors:
    stop = min(start + _BLOCK, vectors.shape[0])
    return vectors.rows(np.arange(start, stop, dtype=np.int64))


def _close(first_nE: Vectors, second_mE: Vectors, threshold: float) -> tuple[Rows, Rows]:
    """Places of the pairs whose exact score reaches the threshold.

    The float32 product only proposes; what lies within its rounding error is computed again.
    """
    product_nm = first_nE @ second_mE.T
    slack = 2 * first_nE.shape[1] * float(np.finfo(np.float32).eps)  # of nearly unit vectors
    first_P, second_P = np.nonzero(product_nm >= threshold - slack)
    unsure = np.flatnonzero(product_nm[first_P, second_P] < threshold + slack)
    keep = np.ones(len(first_P), bool)
    for start in range(0, len(unsure), _BLOCK):
        some = unsure[start : start + _BLOCK]
        scores = exact_scores(first_nE[first_P[some]], second_mE[second_P[some]])
        keep[some] = scores >= np.float32(threshold)
    return first_P[keep], second_P[keep]


def _neighbours(
    gallery: Gallery, options: DuplicateOptions, progress: Progress
) -> Iterator[tuple[Rows, Rows]]:
    """The same through the gallery's index, of each item's nearest only."""
    start = 0
    for block_nE in gallery.vectors.blocks(_QUERIES):
        scores_nK, rows_nK = gallery.search(block_nE, options.neighbours)
        near = scores_nK >= np.float32(options.threshold)
        first_P = np.nonzero(near)[0] + start
        second_P = rows_nK[near]
        other = first_P != second_P
        yield first_P[other], second_P[other]
        start += len(block_nE)
        progress(len(block_nE) / len(gallery))


def _components(
    found: Iterator[tuple[Rows, Rows]], num_rows: int, options: DuplicateOptions
) -> tuple[int, list[Rows]]:
    """How many pairs there are, and the connected groups of two or more rows, largest first."""
    label_N = np.arange(num_rows, dtype=np.int64)  # the smallest row known to belong to each
    num_pairs = 0
    for first_P, second_P in found:
        num_pairs += len(first_P)
        if num_pairs > options.max_pairs:
            raise InputError(
                f"more than {options.max_pairs:,} pairs reach {options.threshold}; give a higher "
                "threshold, or a higher limit with --max-pairs if so many copies are likely"
            )
        _join(label_N, first_P, second_P)
    label_N = _flattened(label_N)
    order = np.argsort(label_N, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(label_N[order])) + 1)
    several = [rows for rows in groups if len(rows) > 1]
    return num_pairs, sorted(several, key=lambda rows: (-len(rows), int(rows[0])))


def _join(label_N: Rows, first_P: Rows, second_P: Rows) -> None:
    """Give both ends of every pair one label, the smaller, until nothing changes."""
    while True:
        one_P, two_P = _roots(label_N, first_P), _roots(label_N, second_P)
        apart = one_P != two_P
        if not apart.any():
            return
        first_P, second_P = first_P[apart], second_P[apart]
        one_P, two_P = one_P[apart], two_P[apart]
        low_P, high_P = np.minimum(one_P, two_P), np.maximum(one_P, two_P)
        np.minimum.at(label_N, high_P, low_P)


def _roots(label_N: Rows, rows_P: Rows) -> Rows:
    root_P = label_N[rows_P]
    while True:
        above_P = label_N[root_P]
        if np.array_equal(above_P, root_P):
            return root_P
        root_P = above_P


def _flattened(label_N: Rows) -> Rows:
    return _roots(label_N, np.arange(len(label_N), dtype=np.int64))


def _describe(gallery: Gallery, rows: Rows) -> DuplicateGroup:
    items = gallery.items(rows.tolist())
    sizes = [_size(gallery, int(row)) for row in rows]
    pixels = [0 if size is None else size[0] * size[1] for size in sizes]
    best = min(range(len(items)), key=lambda at: (-pixels[at], -items[at].size_bytes, at))
    vectors_nE = gallery.vectors.rows(rows)
    scores = exact_scores(vectors_nE[best], vectors_nE)
    listed = [
        Duplicate(
            id=item.id,
            score=float(score),
            uri=item.uri,
            size_bytes=item.size_bytes,
            width=size and size[0],
            height=size and size[1],
            same_bytes=_content(item) == _content(items[best]),
            keep=at == best,
        )
        for at, (item, score, size) in enumerate(zip(items, scores, sizes, strict=True))
    ]
    return DuplicateGroup(tuple(sorted(listed, key=lambda one: (not one.keep, -one.score, one.id))))


def _size(gallery: Gallery, row: int) -> tuple[int, int] | None:
    """Width and height of a picture by its header, if it can be had."""
    if gallery.manifest.modality != "image":
        return None
    try:
        with gallery.open_content(row) as file:
            return read_size(file)
    except CotsError:
        return None


def _content(item: Item) -> tuple[object, ...]:
    """What is the same of items with the same bytes; segments of one film differ in their times."""
    return item.sha256, item.start_s, item.end_s
