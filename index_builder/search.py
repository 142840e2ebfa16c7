"""Search as people see it: hits with ids, scores and metadata.

The command line and the service both search through here, so they give the same ids and scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cots_model.errors import InputError
from index_builder.gallery import Gallery
from index_builder.items import Item, Json
from index_builder.vectors import Vectors


@dataclass(frozen=True)
class Hit:
    """One found item.

    Attributes:
        id: the item's id.
        score: dot product of the unit vectors of query and item, float32.
        uri: where the original is.
        metadata: what came with the item.
    """

    id: str
    score: float
    uri: str
    metadata: dict[str, Json] = field(default_factory=dict)


def search_gallery(
    gallery: Gallery,
    query_QE: Vectors,
    *,
    k: int,
    offset: int = 0,
    min_score: float | None = None,
) -> list[list[Hit]]:
    """The hits of each query, from place `offset` on, best first, ties by id.

    Args:
        gallery: where to search.
        query_QE: `[Q,E]` float32 unit vectors.
        k: at most this many hits for each query.
        offset: how many of the best to leave out, for paging.
        min_score: leave out hits below this score.

    Raises:
        InputError: if k < 1, offset < 0, or the queries do not fit the gallery.
    """
    if k < 1:
        raise InputError(f"k is {k}; at least 1 is accepted")
    if offset < 0:
        raise InputError(f"offset is {offset}; 0 or more is accepted")
    if not len(query_QE):
        return []
    scores_QK, rows_QK = gallery.search(query_QE, k + offset)
    rows = sorted({int(row) for row in rows_QK[:, offset:].flat})
    items = dict(zip(rows, gallery.items(rows), strict=True))
    return [
        [
            _hit(items[int(row)], float(score))
            for score, row in zip(scores_K[offset:], rows_K[offset:], strict=True)
            if min_score is None or float(score) >= min_score
        ]
        for scores_K, rows_K in zip(scores_QK, rows_QK, strict=True)
    ]


def _hit(item: Item, score: float) -> Hit:
    return Hit(id=item.id, score=score, uri=item.uri, metadata=item.metadata)
