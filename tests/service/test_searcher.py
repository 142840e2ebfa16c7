"""The searchers behind their queue: what is one search, and what is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.filter import parse_filter
from index_builder.gallery import Gallery
from service.errors import ApiError
from service.schemas import SearchOptions
from service.searcher import Found, Searcher, SearchJob
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors

COUNT, DIM = 200, 16


def open_gallery(root: Path) -> Gallery:
    items = [
        replace(item, metadata={"year": 2018 + number % 4})
        for number, item in enumerate(plain_items([f"{n:03d}.jpg" for n in range(COUNT)]))
    ]
    return Gallery.open(publish_gallery(root, unit_vectors(COUNT, DIM), items))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return open_gallery(tmp_path_factory.mktemp("searcher") / "photos")


def ask(gallery: Gallery, seed: int, *, queries: int = 1, **options: Any) -> SearchJob:
    chosen = SearchOptions(**options)
    where = None if chosen.filter is None else parse_filter(chosen.filter)
    query_QE = unit_vectors(queries, DIM, seed=seed)
    return SearchJob(gallery, query_QE, chosen, where, None, time.monotonic() + 10)


def search(
    jobs: Sequence[SearchJob], *, together: bool = True, max_hits: int = 2048
) -> tuple[list[Found | ApiError], list[int]]:
    """What each job finds, and how many queries each search was of."""
    sizes: list[int] = []

    async def scenario() -> list[Found | ApiError]:
        searcher = Searcher(
            threads=1, capacity=99, max_hits=max_hits, on_batch=lambda _, n: sizes.append(n)
        )

        async def run(job: SearchJob) -> Found | ApiError:
            try:
                return (await searcher.run(job)).value
            except ApiError as err:
                return err

        if not together:
            return [await run(job) for job in jobs]
        with searcher._pool._changed:  # no thread takes a job before all are there
            tasks = [asyncio.create_task(run(job)) for job in jobs]
            for _ in range(3):
                await asyncio.sleep(0)
        return list(await asyncio.gather(*tasks))

    return asyncio.run(scenario()), sizes


def test_jobs_that_ask_for_the_same_are_one_search_with_the_hits_of_each_alone(gallery) -> None:
    jobs = [ask(gallery, seed, queries=1 + seed % 3, k=7, offset=2) for seed in range(9)]
    found, sizes = search(jobs)
    apart, single = search(jobs, together=False)
    assert found == apart
    assert [len(hits) for hits in found] == [len(job.query_QE) for job in jobs]
    assert sizes == [18]
    assert single == [len(job.query_QE) for job in jobs]


@pytest.mark.parametrize(
    "options",
    [
        {"k": 6},
        {"offset": 1},
        {"min_score": 0.1},
        {"filter": {"year": {"eq": 2019}}},
        {"filter": {"year": {"eq": 2020}}},
    ],
)
def test_what_differs_in_an_option_is_searched_apart(gallery, options) -> None:
    plain, other = {"k": 5}, {"k": 5, **options}
    filtered = {"k": 5, "filter": {"year": {"eq": 2018}}}
    jobs = [ask(gallery, n, **asked) for n, asked in enumerate([plain, other, plain, filtered])]
    found, sizes = search(jobs)
    assert sizes == [2, 1, 1]
    assert found == search(jobs, together=False)[0]


def test_versions_of_a_gallery_are_searched_apart(gallery, tmp_path) -> None:
    other = open_gallery(tmp_path / "photos")
    jobs = [ask(gallery, 1), ask(other, 2), ask(gallery, 3)]
    assert search(jobs)[1] == [2, 1]


def test_what_to_include_is_of_each_job(gallery) -> None:
    jobs = [ask(gallery, 1, include=["embedding"]), ask(gallery, 1, include=[])]
    [[[first, *_]], [[second, *_]]], sizes = search(jobs)
    assert sizes == [2]
    assert first.id == second.id
    assert np.allclose(first.embedding, gallery.vector(first.row))
    assert second.embedding is None
    assert second.metadata is None


def test_a_filter_that_does_not_fit_fails_its_own_jobs_alone(gallery) -> None:
    bad = {"filter": {"colour": {"eq": "red"}}}
    found, _ = search([ask(gallery, 1), ask(gallery, 2, **bad), ask(gallery, 3)])
    assert [isinstance(one, ApiError) for one in found] == [False, True, False]
    assert found[1].param == "filter.colour.eq"


def test_jobs_that_are_one_search_ask_for_no_more_hits_than_they_may(gallery) -> None:
    sizes_asked = (3, 2, 9, 1, 1)
    jobs = [
        ask(gallery, seed, queries=size, k=8, offset=2) for seed, size in enumerate(sizes_asked)
    ]
    found, sizes = search(jobs, max_hits=50)
    assert sizes == [5, 9, 2]
    assert [len(hits) for hits in found] == [3, 2, 9, 1, 1]


def test_searches_for_many_hits_are_answered_one_by_one(gallery) -> None:
    jobs = [ask(gallery, seed, k=150) for seed in range(4)]
    assert search(jobs, max_hits=200)[1] == [1, 1, 1, 1]
