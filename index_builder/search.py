"""Search as people see it: hits with ids, scores, metadata and, in videos, the moment.

The command line and the service both search through here, so they give the same ids and scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cots_model.errors import InputError
from index_builder.filter import Filter
from index_builder.frames import VideoFrames
from index_builder.gallery import Gallery
from index_builder.indexes.base import OnBlock, go_on
from index_builder.items import Item, Json
from index_builder.ranking import RankBy, Ranking
from index_builder.vectors import Rows, Vectors


@dataclass(frozen=True)
class Moment:
    """The frame of a video that is nearest to the query.

    Attributes:
        time_s: when it is shown, in seconds from the start of the video, also of a segment.
        frame: its number among the frames of the item, from 0.
        score: dot product of the unit vectors of query and frame, float32.
    """

    time_s: float
    frame: int
    score: float


@dataclass(frozen=True)
class FrameScore:
    """One frame of a video beside a query; see `Moment`."""

    time_s: float
    score: float


@dataclass(frozen=True)
class Hit:
    """One found item.

    Attributes:
        row: the item's row in the gallery.
        id: the item's id.
        score: dot product of the unit vectors of query and item, or its best frame, float32.
        uri: where the original is.
        metadata: what came with the item.
        text: the text itself, in a text gallery.
        moment: of a video, its best frame.
        start_s: where the segment of a video begins; `None` for all but segments.
        end_s: where it ends.
        frames: of a video, all its frames, if they were asked for.
    """

    row: int
    id: str
    score: float
    uri: str
    metadata: dict[str, Json] = field(default_factory=dict)
    text: str | None = None
    moment: Moment | None = None
    start_s: float | None = None
    end_s: float | None = None
    frames: tuple[FrameScore, ...] | None = None


def search_gallery(
    gallery: Gallery,
    query_QE: Vectors,
    *,
    k: int,
    offset: int = 0,
    min_score: float | None = None,
    where: Filter | None = None,
    distinct: float | None = None,
    rank_by: RankBy = "mean",
    with_frames: bool = False,
    on_block: OnBlock = go_on,
) -> list[list[Hit]]:
    """The hits of each query, from place `offset` on, best first, ties by id.

    Args:
        gallery: where to search.
        query_QE: `[Q,E]` float32 unit vectors.
        k: at most this many hits for each query.
        offset: how many of the best to leave out, for paging.
        min_score: leave out hits below this score.
        where: leave out items that do not meet this filter; what is left is searched exactly.
        distinct: leave out hits whose cosine with a better one is this or more; `offset` and `k`
            count those that stay.
        rank_by: the score of a video: of the mean of its frames (the paper's), or of its best one.
        with_frames: tell the time and score of each frame of the hits.
        on_block: called between blocks of a long search; what it raises ends the search.

    Raises:
        InputError: if k < 1, offset < 0, the queries do not fit the gallery, or it has no frames
            to rank by; a `FilterError` if the filter does not fit it.
    """
    if k < 1:
        raise InputError(f"k is {k}; at least 1 is accepted")
    if offset < 0:
        raise InputError(f"offset is {offset}; 0 or more is accepted")
    if not len(query_QE):
        return []
    ranking = Ranking(
        gallery=gallery,
        rank_by=rank_by,
        rows_M=None if where is None else gallery.filters.rows(where, on_block),
        min_score=min_score,
        on_block=on_block,
    )
    if distinct is None:
        ranked = ranking.best(query_QE, k + offset)
    else:
        ranked = ranking.distinct(query_QE, k + offset, distinct)
    pages = [
        _Page(query_E, scores_K[offset:], rows_K[offset:])
        for query_E, (scores_K, rows_K) in zip(query_QE, ranked, strict=True)
    ]
    rows = sorted({int(row) for page in pages for row in page.rows_K})
    items = dict(zip(rows, gallery.items(rows), strict=True))  # of all queries at once
    return [_hits(gallery, items, page, with_frames=with_frames) for page in pages]


@dataclass(frozen=True)
class _Page:
    """What one query found, from its offset on."""

    query_E: Vectors
    scores_K: Vectors
    rows_K: Rows


def _hits(
    gallery: Gallery, items: Mapping[int, Item], page: _Page, *, with_frames: bool
) -> list[Hit]:
    frames_K = _frames(gallery.frames, page)
    hits = []
    for score, row, frames in zip(page.scores_K, page.rows_K, frames_K, strict=True):
        item = items[int(row)]
        hits.append(
            Hit(
                row=int(row),
                id=item.id,
                score=float(score),
                uri=item.uri,
                metadata=item.metadata,
                text=item.text,
                moment=_moment(frames),
                start_s=item.start_s,
                end_s=item.end_s,
                frames=frames if with_frames else None,
            )
        )
    return hits


def _frames(frames: VideoFrames | None, page: _Page) -> Sequence[tuple[FrameScore, ...] | None]:
    """The frames of all rows, scored at once."""
    if frames is None:
        return [None] * len(page.rows_K)
    return [
        tuple(map(FrameScore, frames.times(int(row)).tolist(), scores_F.tolist()))
        for row, scores_F in zip(page.rows_K, frames.scores(page.query_E, page.rows_K), strict=True)
    ]


def _moment(frames: tuple[FrameScore, ...] | None) -> Moment | None:
    """The best frame; of equals the first."""
    if frames is None:
        return None
    number = max(range(len(frames)), key=lambda n: frames[n].score)
    return Moment(frames[number].time_s, number, frames[number].score)
