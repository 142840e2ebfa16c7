"""Filtered and deduplicated searches beside plain sorting, for every index and vector type."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.filter import parse_filter
from index_builder.frames import VideoFrames
from index_builder.gallery import Gallery, read_manifest
from index_builder.indexes import among
from index_builder.indexes.base import IndexRequest
from index_builder.indexes.build import build_index
from index_builder.indexes.exact import exact_scores
from index_builder.indexes.open import open_index
from index_builder.items import Item, read_items
from index_builder.manifest import INDEX_FILE, ITEMS_FILE, VECTORS_FILE
from index_builder.ranking import DISTINCT_DEPTH
from index_builder.search import Hit, search_gallery
from index_builder.vectors import open_vectors, write_vectors
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors

COUNT, DIM = 1500, 32
SIMILARITY = 0.97
GALLERIES = [
    ("flat", "float32"),
    ("flat", "float16"),
    ("flat", "int8"),
    ("hnsw", "float32"),
    ("ivf", "float16"),
    ("ivf", "int8"),
    ("ivfpq", "float32"),
]
FILTERS: list[dict[str, Any]] = [
    {"group": {"eq": 3}},
    {"group": {"ne": 3}},
    {"number": {"lt": 4}},
    {"number": {"gte": 20}},
    {"number": {"lt": 0}},
    {"or": [{"group": {"in": [1, 2]}}, {"number": {"gte": COUNT - 5}}]},
]


def _vectors() -> np.ndarray:
    """Clusters of near-duplicates, exact copies, and vectors that stand alone."""
    rng = np.random.default_rng(3)
    vectors_NE = unit_vectors(COUNT, DIM, seed=4)
    centres = unit_vectors(40, DIM, seed=5)
    place = rng.permutation(COUNT)
    for number, row in enumerate(place[:600]):
        noise = rng.standard_normal(DIM).astype(np.float32) * (number % 8) * 0.01
        vectors_NE[row] = centres[number % 40] + noise
    vectors_NE[place[600:700]] = vectors_NE[place[700]]
    return vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)


def _items() -> list[Item]:
    items = plain_items([f"{number:05d}" for number in range(COUNT)])
    return [
        Item(**{**vars(item), "metadata": {"number": number, "group": number * 7 % 10}})
        for number, item in enumerate(items)
    ]


def make_gallery(root: Path, kind: str, vector_type: str) -> Gallery:
    publish_gallery(root, _vectors(), _items())
    folder, manifest = read_manifest(root)
    path = root / VECTORS_FILE
    info = write_vectors(path, lambda: iter([_vectors()]), (COUNT, DIM), vector_type)
    vectors = open_vectors(path, (COUNT, DIM), info)
    index_info = build_index(IndexRequest(kind=kind), vectors, root / INDEX_FILE)
    index = open_index(root / INDEX_FILE, index_info, vectors, device="cpu")
    return Gallery(root, manifest, vectors, read_items(folder / ITEMS_FILE), index)


@pytest.fixture(scope="module", params=GALLERIES, ids="-".join)
def gallery(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return make_gallery(tmp_path_factory.mktemp("g") / "photos", *request.param)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return make_gallery(tmp_path_factory.mktemp("g") / "photos", "flat", "float32")


def queries(count: int = 4, seed: int = 0) -> np.ndarray:
    near = _vectors()[np.random.default_rng(seed).integers(0, COUNT, count)]
    query_QE = near + 0.6 * unit_vectors(count, DIM, seed=seed + 100)
    return (query_QE / np.linalg.norm(query_QE, axis=1, keepdims=True)).astype(np.float32)


def stored(gallery: Gallery) -> np.ndarray:
    return np.concatenate(list(gallery.vectors.blocks()))


def matching(raw: dict[str, Any] | None) -> np.ndarray:
    numbers = np.arange(COUNT)
    group = numbers * 7 % 10
    if raw is None:
        return numbers
    tests = {
        str(FILTERS[0]): group == 3,
        str(FILTERS[1]): group != 3,
        str(FILTERS[2]): numbers < 4,
        str(FILTERS[3]): numbers >= 20,
        str(FILTERS[4]): numbers < 0,
        str(FILTERS[5]): (group == 1) | (group == 2) | (numbers >= COUNT - 5),
    }
    return np.flatnonzero(tests[str(raw)])


def ranked(gallery: Gallery, query_E: np.ndarray, rows: np.ndarray) -> list[tuple[int, float]]:
    """All of some rows, best first, by exact scores of the stored vectors."""
    scores = exact_scores(query_E, stored(gallery)[rows])
    order = np.lexsort((rows, -scores))
    return [(int(rows[n]), float(scores[n])) for n in order]


def thinned(gallery: Gallery, ranking: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Of near-duplicates the best, by a loop."""
    unit = stored(gallery).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    kept: list[tuple[int, float]] = []
    for row, score in ranking:
        cosines = unit[[k for k, _ in kept]] @ unit[row]
        assert not (np.abs(cosines - SIMILARITY) < 1e-6).any(), "too near to the bound to tell"
        if not (cosines >= SIMILARITY).any():
            kept.append((row, score))
    return kept


def found(hits: list[Hit]) -> list[tuple[int, float]]:
    return [(hit.row, hit.score) for hit in hits]


@pytest.mark.parametrize("raw", FILTERS, ids=str)
def test_a_filtered_search_is_exact(gallery, raw):
    query_QE = queries()
    rows = matching(raw)
    for k in (1, 10, 333, COUNT):
        hits_Q = search_gallery(gallery, query_QE, k=k, where=parse_filter(raw))
        for query_E, hits in zip(query_QE, hits_Q, strict=True):
            assert found(hits) == ranked(gallery, query_E, rows)[:k]


def test_a_filter_does_not_move_a_score(gallery):
    query_QE = queries(3, seed=8)
    everything = search_gallery(gallery, query_QE, k=COUNT)
    some = search_gallery(gallery, query_QE, k=50, where=parse_filter({"group": {"eq": 3}}))
    for all_hits, hits in zip(everything, some, strict=True):
        score_of = {hit.row: hit.score for hit in all_hits}
        assert all(hit.score == score_of[hit.row] for hit in hits)


@pytest.mark.parametrize("seed", range(3))
def test_pages_bounds_and_filters_go_together(gallery, seed):
    rng = np.random.default_rng(seed)
    for _ in range(12):
        [query_E] = queries(1, seed=int(rng.integers(1000)))
        raw = [None, *FILTERS][int(rng.integers(len(FILTERS) + 1))]
        k, offset = int(rng.integers(1, 40)), int(rng.integers(60))
        expected = ranked(gallery, query_E, matching(raw))
        if rng.random() < 0.5:
            expected = thinned(gallery, expected)
            distinct = SIMILARITY
        else:
            distinct = None
        bound = None
        if expected and rng.random() < 0.5:
            bound = expected[int(rng.integers(len(expected)))][1]
            expected = [hit for hit in expected if hit[1] >= bound]
        where = None if raw is None else parse_filter(raw)
        if raw is None and not gallery.exact and distinct is None:
            continue  # what an approximate index finds of all rows is its own affair
        options = {"k": k, "offset": offset, "min_score": bound}
        [hits] = search_gallery(gallery, query_E[None], where=where, distinct=distinct, **options)
        assert found(hits) == expected[offset : offset + k]


@pytest.mark.parametrize("raw", [None, FILTERS[1]], ids=str)
def test_pages_of_distinct_hits_join_to_the_whole(gallery, raw):
    where = None if raw is None else parse_filter(raw)
    query_1E = queries(1, seed=5)
    expected = thinned(gallery, ranked(gallery, query_1E[0], matching(raw)))
    assert 500 < len(expected) < len(matching(raw)) - 200
    pages = (
        search_gallery(gallery, query_1E, k=97, offset=at, where=where, distinct=SIMILARITY)[0]
        for at in range(0, len(expected) + 97, 97)
    )
    assert found(list(itertools.chain(*pages))) == expected


def test_many_copies_do_not_hide_what_is_behind_them(tmp_path):
    """k distinct hits are found though the first of them has thousands of copies."""
    count = 9000
    vectors_NE = unit_vectors(count, 8, seed=1)
    vectors_NE[:8900] = vectors_NE[0]
    items = plain_items([f"{number:05d}" for number in range(count)])
    gallery = Gallery.open(publish_gallery(tmp_path / "g", vectors_NE, items))
    for offset in (0, 5):
        [hits] = search_gallery(gallery, vectors_NE[:1], k=5, offset=offset, distinct=0.99999)
        assert len(hits) == 5
        assert offset or hits[0].row == 0
        assert all(hit.row >= 8900 for hit in hits[0 if offset else 1 :])
    assert count < DISTINCT_DEPTH


def test_only_so_many_of_the_best_are_looked_at_for_distinct_ones(flat, monkeypatch):
    monkeypatch.setattr("index_builder.ranking.DISTINCT_DEPTH", 300)
    query_1E = queries(1, seed=5)
    expected = thinned(flat, ranked(flat, query_1E[0], np.arange(COUNT))[:300])
    [hits] = search_gallery(flat, query_1E, k=290, distinct=SIMILARITY)
    assert found(hits) == expected[:290]
    assert len(expected) < 290


def test_queries_of_a_batch_are_answered_as_alone(gallery):
    query_QE = queries(9, seed=2)
    for where, distinct in itertools.product((None, parse_filter(FILTERS[3])), (None, SIMILARITY)):
        together = search_gallery(gallery, query_QE, k=20, where=where, distinct=distinct)
        for query_E, hits in zip(query_QE, together, strict=True):
            alone = search_gallery(gallery, query_E[None], k=20, where=where, distinct=distinct)
            assert hits == alone[0]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    frames_NFE = unit_vectors(COUNT * 16, DIM, seed=6).reshape(COUNT, 16, DIM)
    frames_NFE[100:140] = frames_NFE[100]
    mean_NE = frames_NFE.mean(axis=1)
    root = publish_gallery(
        tmp_path_factory.mktemp("g") / "films",
        mean_NE / np.linalg.norm(mean_NE, axis=1, keepdims=True),
        _items(),
        modality="video",
        frames_NFE=frames_NFE,
        times_NF=np.tile(np.arange(16), (COUNT, 1)),
    )
    return Gallery.open(root)


@pytest.mark.parametrize("raw", FILTERS, ids=str)
def test_ranking_by_frame_takes_filters(videos, raw):
    query_QE = unit_vectors(3, DIM, seed=7)
    rows = matching(raw)
    assert isinstance(videos.frames, VideoFrames)
    for query_E, hits in zip(
        query_QE,
        search_gallery(videos, query_QE, k=40, where=parse_filter(raw), rank_by="frame"),
        strict=True,
    ):
        best = videos.frames.scores(query_E, rows).max(axis=1) if len(rows) else np.empty(0)
        order = np.lexsort((rows, -best))[:40]
        assert found(hits) == [(int(rows[n]), float(best[n])) for n in order]


def test_ranking_by_frame_takes_distinct_hits(videos):
    query_1E = videos.frames.vectors(100)[:1]
    expected = thinned(
        videos,
        found(search_gallery(videos, query_1E, k=COUNT, rank_by="frame")[0]),
    )
    [hits] = search_gallery(videos, query_1E, k=60, distinct=SIMILARITY, rank_by="frame")
    assert found(hits) == expected[:60]
    assert [hit.row for hit in hits if 100 <= hit.row < 140] == [100]


class Stop(Exception):  # noqa: N818 - it is no error
    """Raised by the clock of a test."""


@pytest.mark.parametrize("option", ["filter", "frame", "distinct"])
def test_a_long_search_ends_between_two_blocks(gallery, videos, monkeypatch, option):
    monkeypatch.setattr(among, "BLOCK_ROWS", 16)
    monkeypatch.setattr("index_builder.frames.BLOCK_ROWS", 16)
    options: dict[str, Any] = {
        "filter": {"where": parse_filter({"number": {"lt": 300}})},
        "frame": {"rank_by": "frame"},
        "distinct": {"distinct": SIMILARITY, "k": 1000},
    }[option]
    searched = videos if option == "frame" else gallery
    calls = []

    def clock() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    with pytest.raises(Stop):
        search_gallery(searched, queries(2), on_block=clock, **{"k": 5, **options})
    assert len(calls) == 3
