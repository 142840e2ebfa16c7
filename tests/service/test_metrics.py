"""`/metrics`: what it tells of real requests, and that no label can grow without end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cots_model.encoder import Encoder
from service.metrics import GalleryFigures, Metrics, version_time
from service.pace import Pace
from tests.service.conftest import GatedEncoder, Running, picture, wait_until

SEARCH = "/v1/galleries/pets/search"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(server: Running) -> Samples:
    answer = server.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return read(answer.text)


def read(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


@pytest.fixture
def fresh(serve) -> Running:
    """A server that nobody else asks."""
    return serve(probe_interval_s=60.0)


def requests(samples: Samples, method: str, route: str, status: int) -> float:
    labels = {"method": method, "route": route, "status": str(status)}
    return value(samples, "cots_requests_total", **labels)


def test_requests_are_counted_by_the_template_of_their_route(fresh) -> None:
    for name in ("cat.jpg", "dogs/rex in snow.jpg", "none.jpg"):
        fresh.client.get(f"/v1/galleries/pets/items/{name}")
    fresh.client.head("/v1/galleries/pets/items/cat.jpg")
    fresh.client.get("/nope")
    fresh.client.request("BREW", "/livez")
    samples = scrape(fresh)
    item = "/v1/galleries/{g}/items/{item_id}"
    assert requests(samples, "GET", item, 200) == 2
    assert requests(samples, "GET", item, 404) == 1
    assert requests(samples, "HEAD", item, 200) == 1
    assert requests(samples, "GET", "none", 404) == 1
    assert requests(samples, "other", "/livez", 405) == 1
    assert not any("cat.jpg" in str(key) for key in samples)


def test_stages_and_batches_of_a_search_are_told(fresh) -> None:
    for text in ("a dog", "two dogs", "three dogs"):
        assert fresh.client.post(SEARCH, json={"query": text}).status_code == 200
    files = {"file": ("a.jpg", picture(3))}
    assert fresh.client.post(f"{SEARCH}/upload", files=files).status_code == 200
    samples = scrape(fresh)
    for stage, wanted in {"queue": 4, "decode": 1, "encode": 4, "search": 4}.items():
        assert value(samples, "cots_stage_duration_seconds_count", stage=stage) == wanted, stage
        assert value(samples, "cots_stage_duration_seconds_sum", stage=stage) > 0, stage
    assert value(samples, "cots_batch_size_sum", kind="text") == 3 + 2  # and the first probe's
    assert value(samples, "cots_batch_size_sum", kind="image") == 1 + 2
    assert value(samples, "cots_request_duration_seconds_count", route=SEARCH_ROUTE) == 3


SEARCH_ROUTE = "/v1/galleries/{g}/search"


def test_galleries_build_and_process_are_told(fresh, registry) -> None:
    samples = scrape(fresh)
    pets = registry.loaded["pets"]
    assert value(samples, "cots_gallery_items", gallery="pets") == len(pets)
    assert value(samples, "cots_gallery_up", gallery="pets") == 1
    made_s = value(samples, "cots_gallery_version_timestamp_seconds", gallery="pets")
    assert made_s == pytest.approx(version_time(pets.version))
    assert made_s > 1e9
    assert loads(samples, "pets", "loaded") == 1
    assert loads(samples, "pets", "refused") == 0
    assert value(samples, "cots_ready_workers") == 1
    assert value(samples, "process_resident_memory_bytes", worker="0") > 1e7
    assert value(samples, "process_cpu_seconds_total", worker="0") > 0
    built = [dict(labels) for name, labels in samples if name == "cots_build_info"]
    assert [(info["device"], info["precision"]) for info in built] == [("cpu", "float32")]


def loads(samples: Samples, gallery: str, outcome: str) -> float:
    return value(samples, "cots_gallery_loads_total", gallery=gallery, outcome=outcome)


def test_new_versions_refused_versions_and_galleries_that_go_are_told() -> None:
    metrics = Metrics()

    def tell(**galleries: GalleryFigures) -> Samples:
        metrics.refresh(waiting={}, ready=True, galleries=galleries)
        return read(metrics.render().decode())

    first = GalleryFigures("20260101T120000.000000Z", 10, num_loaded=1)
    tell(pets=first, gone=first)
    samples = tell(pets=GalleryFigures("20260102T120000.000000Z", 20, num_loaded=2, num_refused=3))
    assert value(samples, "cots_gallery_items", gallery="pets") == 20
    assert (loads(samples, "pets", "loaded"), loads(samples, "pets", "refused")) == (2, 3)
    assert value(samples, "cots_gallery_up", gallery="pets") == 1
    assert value(samples, "cots_gallery_up", gallery="gone") == 0
    assert value(tell(pets=GalleryFigures(None)), "cots_gallery_up", gallery="pets") == 0


@pytest.fixture
def gated(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatedEncoder]:
    monkeypatch.setattr(Pace, "learn", lambda *_: None)  # a gate is not the model's pace
    gated = GatedEncoder(encoder)
    yield gated
    gated.gate.set()


def test_queue_depth_requests_in_flight_and_rejections_are_told(serve, gated) -> None:
    server = serve(model=gated, queue_size=1, deadline_s=0.6, probe_interval_s=60.0)
    gated.gate.clear()
    with httpx.Client(base_url=server.url) as client:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(client.post, SEARCH, json={"query": "first"})
            wait_until(lambda: ["first"] in gated.begun)
            second = pool.submit(client.post, SEARCH, json={"query": "second"})
            wait_until(lambda: server.app.state.service.embedder.waiting == 1)
            samples = scrape(server)
            assert value(samples, "cots_queue_depth", queue="encode") == 1
            assert value(samples, "cots_requests_in_flight") == 3  # and the scrape itself
            assert client.post(SEARCH, json={"query": "third"}).status_code == 429
            assert {first.result().status_code, second.result().status_code} == {504}
    gated.gate.set()
    samples = scrape(server)
    assert rejected(samples, 429, "queue_full") == 1
    assert rejected(samples, 504, "deadline_exceeded") == 2
    assert value(samples, "cots_queue_depth", queue="encode") == 0


def rejected(samples: Samples, status: int, reason: str) -> float:
    labels = {"status": str(status), "reason": reason}
    return value(samples, "cots_rejected_requests_total", **labels)


def test_rejections_around_the_routes_are_told_by_reason(serve) -> None:
    key = "a-long-random-key"
    hashes = (hashlib.sha256(key.encode()).hexdigest(),)
    server = serve(api_key_sha256=hashes, max_body_bytes=100)
    assert server.client.get("/metrics").status_code == 401
    server.client.headers["authorization"] = f"Bearer {key}"
    assert server.client.post(SEARCH, content=bytes(200)).status_code == 413
    assert server.client.get("/v1/galleries/none").status_code == 404
    samples = scrape(server)
    assert rejected(samples, 401, "invalid_api_key") == 1
    assert rejected(samples, 413, "body_too_large") == 1
    assert rejected(samples, 404, "gallery_not_found") == 1


def test_foreign_host_names_are_rejected_and_told(fresh) -> None:
    answer = fresh.client.get("/metrics", headers={"host": "evil.example"})
    assert answer.status_code == 421
    assert rejected(scrape(fresh), 421, "host_not_allowed") == 1


def test_version_that_is_no_time_is_told_as_zero() -> None:
    assert version_time("20260101T120000.000000Z") == 1767268800.0
    assert version_time("mine") == 0.0
