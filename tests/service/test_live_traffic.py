"""A hundred new versions under constant searches: nothing fails, mixes, or stays open."""

from __future__ import annotations

import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cots_client import Client, CotsError, QueryError, SearchResult, embedding, item
from index_builder.build import build_gallery
from index_builder.gallery import Gallery
from index_builder.options import BuildOptions, UpdateOptions
from index_builder.search import search_gallery
from index_builder.update import update_gallery
from service.galleries import Registry
from service.queries import unit_vector
from tests.galleries import publish_texts
from tests.service.conftest import picture, wait_until
from tests.service.versions import CORRUPT, publish_copy

NUM_VERSIONS, NUM_CLIENTS = 100, 4
TEXTS = {
    "dogs": [f"{n} dogs in a park" for n in range(12)],
    "towers": [f"{n} towers of a city" for n in range(30)],
}
VECTOR_E = np.random.default_rng(0).normal(size=32).astype(np.float32)
QUERIES = [embedding(VECTOR_E), item("003"), "dogs under a tower"]

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/maps"), reason="open files and mappings are counted in /proc"
)


@dataclass
class Traffic:
    """Clients that search all the time, and what they were told.

    Attributes:
        url: of the server, whose gallery is `live`.
        queries: of every request.
        answers: distinct (version, (id, text, score) of the hits of each query), counted.
        failures: anything else.
        versions: that were named in answers.
    """

    url: str
    queries: list
    answers: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self._threads = [threading.Thread(target=self._search) for _ in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)

    def _search(self) -> None:
        with Client(self.url, max_retries=0) as client:
            while not self._ended.is_set():
                try:
                    self._note(client.search_many("live", self.queries, k=100))
                except CotsError as err:
                    self.failures.append(repr(err))

    def _note(self, results: list[SearchResult | QueryError]) -> None:
        found = []
        for result in results:
            if isinstance(result, QueryError):
                raise result
            found.append(tuple((hit.id, hit.text, hit.score) for hit in result.hits))
        [version] = {result.version for result in results}
        self.answers[version, tuple(found)] += 1
        self.versions.add(version)


@pytest.fixture(scope="module")
def templates(encoder, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("templates")
    for name, texts in TEXTS.items():
        source = folder / f"{name}.txt"
        source.write_text("\n".join(texts), "utf-8")
        publish_texts(folder / name, encoder, texts, source)
    return {name: folder / name for name in TEXTS}


def mappings(root: Path) -> Counter[str]:
    """How many mappings there are of files of each version."""
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    inside = (line.split(f"{root}/live/versions/")[1] for line in lines if f"{root}/" in line)
    return Counter(place.split("/")[0] for place in inside)


def seen(registry: Registry) -> int:
    """How many versions were taken or refused."""
    [status] = registry.statuses()
    return status.num_loaded + status.num_refused


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def expected(template: Path) -> tuple:
    """What the queries of the traffic that need no model find in a template."""
    gallery = Gallery.open(template)
    vectors = [
        unit_vector(VECTOR_E.tolist(), gallery.manifest.dim, param=""),
        gallery.vector(gallery.row("003")),
    ]
    found = search_gallery(gallery, np.stack(vectors), k=100)
    return tuple(tuple((hit.id, hit.text, hit.score) for hit in hits) for hits in found)


def test_hundred_versions_under_traffic_fail_nothing_and_mix_nothing(
    serve, encoder, templates, tmp_path
) -> None:
    root = tmp_path / "root"
    live = root / "live"
    holds = {publish_copy(templates["dogs"], live): "dogs"}
    registry = Registry.open(root, expected_fingerprint=encoder.fingerprint)
    server = serve(found=registry, reload_interval_s=0.02)
    refused = set()
    with Traffic(server.url, QUERIES) as traffic:
        wait_until(lambda: traffic.versions)
        files_before = num_open_files()
        for number in range(NUM_VERSIONS):
            name = ("towers", "dogs")[number % 2]
            bad = number % 5 == 2
            change = CORRUPT[number // 5 % len(CORRUPT)] if bad else {}
            version = publish_copy(templates[name], live, **change)
            if number % 3 == 0:  # the others are noticed
                answer = server.client.post("/v1/galleries/live/reload")
                assert answer.status_code == (409 if bad else 200)
            wait_until(lambda n=number + 2: seen(registry) == n)
            if bad:
                refused.add(version)
            else:
                holds[version] = name
                wait_until(lambda v=version: v in traffic.versions)
    [status] = registry.statuses()
    assert (status.num_loaded, status.num_refused) == (81, 20)
    assert traffic.failures == []
    wanted = {name: expected(path) for name, path in templates.items()}
    for served, (*exact, by_words) in traffic.answers:
        assert served not in refused
        assert tuple(exact) == wanted[holds[served]]
        assert {text for _, text, _ in by_words} == set(TEXTS[holds[served]])
    assert traffic.versions == set(holds)
    wait_until(lambda: registry.statuses()[0].num_open == 1)
    assert set(mappings(root)) == {registry.get("live").version}
    wait_until(lambda: num_open_files() <= files_before)


def test_builds_and_updates_are_served_while_they_are_made(serve, encoder, tmp_path) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    source.mkdir()
    for seed in range(6):
        (source / f"{seed}.jpg").write_bytes(picture(seed))
    options = BuildOptions(sources=(str(source),), gallery=root / "live", workers=1)
    build_gallery(options, encoder)
    registry = Registry.open(root, expected_fingerprint=encoder.fingerprint)
    server = serve(found=registry, reload_interval_s=0.02)
    counts = {registry.get("live").version: 6}
    with Traffic(server.url, ["a dog", item("3.jpg")]) as traffic:
        for number, change in enumerate((update, build, update), start=1):
            (source / f"new {number}.jpg").write_bytes(picture(50 + number))
            change(options, encoder)
            wait_until(lambda n=number: len(registry.get("live")) == 6 + n)
            version = registry.get("live").version
            counts[version] = 6 + number
            wait_until(lambda v=version: v in traffic.versions)
    assert traffic.failures == []
    for served, found in traffic.answers:
        assert {len(hits) for hits in found} == {counts[served]}


def build(options: BuildOptions, encoder) -> None:
    build_gallery(options, encoder)


def update(options: BuildOptions, encoder) -> None:
    update_gallery(UpdateOptions(gallery=options.gallery, workers=1), encoder)
