"""Galleries that change while they are served: noticed and taken, or refused."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from index_builder.manifest import INDEX_FILE, ITEMS_FILE, MANIFEST_FILE, VECTORS_FILE, Manifest
from service import galleries, opening
from service.galleries import Registry
from service.opening import Opener
from tests.service.conftest import GatedEncoder, error_of, wait_until
from tests.service.places import FEW, MANY, count, reload
from tests.service.versions import cut, flip_last_byte, publish_copy


def test_new_version_is_noticed_without_being_told(serve, place) -> None:
    server = serve(found=place.open(), reload_interval_s=0.05)
    version = publish_copy(place.many, place.live)
    wait_until(lambda: count(server) == len(MANY))
    answer = server.client.post(
        "/v1/galleries/live/search", json={"query": MANY[3], "k": 100}
    ).json()
    assert answer["version"] == version
    assert len(answer["hits"]) == len(MANY)
    assert answer["hits"][0]["text"] == MANY[3]


def test_reload_loads_at_once_and_tells_both_versions(serve, place) -> None:
    registry = place.open()
    old = registry.loaded["live"].version
    server = serve(found=registry, reload_interval_s=0)
    new = publish_copy(place.many, place.live)
    answer = reload(server)
    assert answer.status_code == 200
    assert answer.json() == {"gallery": "live", "previous_version": old, "version": new}
    assert count(server) == len(MANY)
    assert reload(server).json() == {"gallery": "live", "previous_version": new, "version": new}
    [status] = registry.statuses()
    assert (status.num_loaded, status.num_refused, status.count) == (2, 0, len(MANY))


def test_no_interval_never_looks(serve, place) -> None:
    registry = place.open()
    polls = []
    registry.poll = lambda **_: polls.append(1)
    serve(found=registry, reload_interval_s=0)
    server = serve(found=registry, reload_interval_s=0.01)
    wait_until(lambda: len(polls) > 3)
    server.__exit__()
    seen = len(polls)
    assert reload(serve(found=registry, reload_interval_s=0)).status_code == 200
    assert len(polls) == seen


def publish_in_the_middle(monkeypatch, publish) -> list[str]:
    """Have the first opening interrupted by `publish`, after its memory was reckoned."""
    published: list[str] = []
    reckon = opening.version_bytes

    def reckoned(*given):
        if not published:
            published.append(publish())
        return reckon(*given)

    monkeypatch.setattr(opening, "version_bytes", reckoned)
    return published


def test_version_is_the_one_that_was_looked_at_whatever_is_published_meanwhile(
    place, monkeypatch
) -> None:
    registry = place.open()
    needed = registry.statuses()[0].memory_bytes
    first = publish_copy(place.few, place.live)
    later = publish_in_the_middle(monkeypatch, lambda: publish_copy(place.many, place.live))
    registry.poll()
    [status] = registry.statuses()
    assert (status.version, status.count, status.memory_bytes) == (first, len(FEW), needed)
    registry.poll()
    assert registry.statuses()[0].version == later[0]


def test_version_that_is_replaced_while_it_is_opened_is_no_refusal(place, monkeypatch) -> None:
    registry = place.open()
    publish_copy(place.few, place.live, unseen=cut(INDEX_FILE))
    later = publish_in_the_middle(monkeypatch, lambda: publish_copy(place.many, place.live))
    registry.poll()
    [status] = registry.statuses()
    assert (status.version, status.num_refused, status.refusal) == (later[0], 0, None)
    assert len(registry.get("live")) == len(MANY)


def test_versions_that_are_replaced_faster_than_they_open_hold_up_nobody(
    place, monkeypatch
) -> None:
    """As of a builder that publishes and prunes all the time."""
    publish_copy(place.few, place.root / "other")
    registry = place.open()
    reckon, opened = opening.version_bytes, []

    def reckoned(folder: Path, manifest: Manifest) -> int:
        if place.live in folder.parents:
            opened.append(folder)
            for _ in range(2):  # the first of them removes the one that is being opened
                publish_copy(place.many, place.live)
        return reckon(folder, manifest)

    monkeypatch.setattr(opening, "version_bytes", reckoned)
    publish_copy(place.many, place.live)
    version = publish_copy(place.many, place.root / "other")
    registry.poll()
    assert registry.get("other").version == version
    assert len(opened) <= 3
    assert registry.status("live").refusal is None
    assert len(registry.get("live")) == len(FEW)


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2flive", ".", "li%00ve", "live%2fversions"])
def test_reload_takes_no_path(serve, place, name) -> None:
    server = serve(found=place.open(), reload_interval_s=0)
    assert server.client.post(f"/v1/galleries/{name}/reload").status_code in (404, 405)


def no_unit(folder: Path) -> None:
    vectors_NE = np.load(folder / VECTORS_FILE)
    np.save(folder / VECTORS_FILE, vectors_NE * 2)


FAULTY = {
    "flipped byte": ("damaged", {"unseen": flip_last_byte(VECTORS_FILE)}),
    "short index": ("damaged", {"unseen": cut(INDEX_FILE)}),
    "short items": ("damaged", {"unseen": cut(ITEMS_FILE)}),
    "no items": ("damaged", {"unseen": lambda folder: (folder / ITEMS_FILE).unlink()}),
    "manifest": ("damaged", {"unseen": flip_last_byte(MANIFEST_FILE)}),
    "short index, signed": ("damaged", {"signed": cut(INDEX_FILE)}),
    "another count": ("damaged", {"count": 19}),
    "other model": ("other_model", {"model_fingerprint": "0" * 64}),
    "long vectors": ("self_test", {"signed": no_unit}),
}


@pytest.mark.parametrize("case", FAULTY)
def test_bad_version_is_refused_and_the_old_one_goes_on(serve, place, caplog, case) -> None:
    fault, change = FAULTY[case]
    registry = place.open()
    old = registry.get("live").version
    server = serve(found=registry, reload_interval_s=0.05)
    with caplog.at_level(logging.ERROR):
        bad = publish_copy(place.many, place.live, **change)
        wait_until(lambda: server.client.get("/readyz").json()["warnings"])
        error = error_of(reload(server), 409)
        registry.poll()
    assert error["code"] == "version_refused"
    ready = server.client.get("/readyz")
    assert ready.status_code == 200
    [warning] = ready.json()["warnings"]
    assert warning in error["message"]
    assert all(word in warning for word in ("'live'", old, bad))
    assert str(place.root) not in ready.text + error["message"]
    body = server.client.get("/v1/galleries/live").json()
    assert (body["version"], body["count"]) == (old, len(FEW))
    assert (body["refused"]["version"], body["refused"]["reason"]) == (bad, fault)
    [line] = [r for r in caplog.records if "gallery refused" in r.message]  # once, not per look
    assert line.exc_info is None
    [status] = registry.statuses()
    assert (status.num_loaded, status.num_refused, status.num_open) == (1, 1, 1)
    good = publish_copy(place.many, place.live)
    wait_until(lambda: count(server) == len(MANY))
    body = server.client.get("/v1/galleries/live").json()
    assert (body["version"], body["refused"]) == (good, None)
    assert server.client.get("/readyz").json()["warnings"] == []


def test_damaged_pointer_is_a_warning(serve, place) -> None:
    server = serve(found=place.open(), reload_interval_s=0)
    (place.live / "current").write_text("nonsense", "ascii")
    assert error_of(reload(server), 409)["code"] == "version_refused"
    assert server.client.get("/v1/galleries/live").json()["refused"]["version"] is None
    assert count(server) == len(FEW)


def test_bad_gallery_that_comes_later_is_a_warning(serve, place) -> None:
    server = serve(found=place.open(), reload_interval_s=0)
    publish_copy(place.many, place.root / "late", unseen=cut(INDEX_FILE))
    assert error_of(reload(server, "late"), 409)
    assert error_of(server.client.get("/v1/galleries/late"), 503)["code"] == "gallery_unavailable"
    ready = server.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["warnings"] == ["gallery 'late' could not be loaded"]


def test_gallery_refused_at_the_start_is_taken_once_it_is_mended(serve, place) -> None:
    publish_copy(place.many, place.root / "bad", unseen=cut(INDEX_FILE))
    server = serve(found=place.open(), reload_interval_s=0)
    assert server.client.get("/readyz").status_code == 503
    publish_copy(place.many, place.root / "bad")
    assert reload(server, "bad").json()["previous_version"] is None
    assert server.client.get("/readyz").status_code == 200


def test_taking_a_bad_version_back_ends_the_warning(place) -> None:
    registry = place.open()
    pointer = (place.live / "current").read_bytes()
    publish_copy(place.many, place.live, unseen=cut(INDEX_FILE))
    registry.poll()
    assert registry.warnings()
    (place.live / "current").write_bytes(pointer)
    registry.poll()
    assert registry.warnings() == []
    assert registry.statuses()[0].num_loaded == 1


def test_version_too_big_for_the_budget_is_not_even_read(place, monkeypatch) -> None:
    registry = place.open()
    needed = registry.statuses()[0].memory_bytes
    tight = place.open(memory_budget_bytes=needed * 3 // 2)  # one of them, and never two
    publish_copy(place.many, place.live)
    monkeypatch.setattr("service.opening.Gallery.open", None)
    tight.poll()
    [status] = tight.statuses()
    assert status.refusal is not None
    assert status.refusal.fault == "too_big"
    assert "memory_budget_bytes" in status.refusal.message
    assert len(tight.get("live")) == len(FEW)


def test_version_too_big_for_the_machine_is_taken_when_there_is_room(place) -> None:
    free = [1 << 40]
    opener = Opener(expected_fingerprint=place.encoder.fingerprint, free_bytes=lambda: free[0])
    registry = Registry(place.root, opener)
    registry.poll()
    publish_copy(place.many, place.live)
    free[0] = 1000
    registry.poll()
    assert registry.statuses()[0].refusal.fault == "too_big"
    free[0] = 1 << 40
    wait_until(lambda: registry.poll() or len(registry.get("live")) == len(MANY))


def test_refused_version_that_was_expensive_waits_for_its_next_try(place, monkeypatch) -> None:
    registry = place.open()
    publish_copy(place.many, place.live, unseen=cut(INDEX_FILE))
    tried = []
    opening = Opener.open
    monkeypatch.setattr(
        Opener, "open", lambda self, *a, **k: (tried.append(1), opening(self, *a, **k))[1]
    )
    monkeypatch.setattr(galleries, "_RETRY_FACTOR", 1e9)
    registry.poll()
    registry.poll()
    assert len(tried) == 1
    registry.reload("live")  # whoever asks gets a try
    assert len(tried) == 2
    assert registry.statuses()[0].num_refused == 1


def test_many_reloads_at_once_are_one_load(serve, place, monkeypatch) -> None:
    registry = place.open()
    server = serve(found=registry, reload_interval_s=0)
    held, opened = threading.Event(), []
    opening = Opener.open

    def slow(self, folder, **options):
        opened.append(folder)
        assert held.wait(20)
        return opening(self, folder, **options)

    monkeypatch.setattr(Opener, "open", slow)
    new = publish_copy(place.many, place.live)
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(reload, server) for _ in range(12)]
        wait_until(lambda: opened)
        assert count(server) == len(FEW)  # and whoever searches meanwhile does not wait
        held.set()
        answers = [one.result() for one in waiting]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["version"] for answer in answers} == {new}
    assert len(opened) == 1


def test_look_that_takes_long_is_told(serve, place, monkeypatch) -> None:
    monkeypatch.setattr("service.reloading.LONG_S", 0.2)
    server = serve(found=place.open(), reload_interval_s=0)
    held = threading.Event()
    monkeypatch.setattr("service.presence.list_galleries", lambda root: held.wait(20) and [])

    def warnings() -> list[str]:
        return [
            line
            for line in server.client.get("/readyz").json()["warnings"]
            if "the look at" in line
        ]

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reload, server)  # from a disk that does not answer
        wait_until(warnings)
        assert server.client.get("/readyz").status_code == 200
        assert "a disk does not answer" in warnings()[0]
        assert count(server) == len(FEW)
        held.set()
        assert error_of(waiting.result(), 503)["code"] == "gallery_unavailable"
    wait_until(lambda: not warnings())


def test_request_keeps_the_version_that_it_began_with(serve, place, encoder) -> None:
    gated = GatedEncoder(encoder)
    registry = place.open()
    old = registry.get("live").version
    server = serve(model=gated, found=registry, reload_interval_s=0, probe_interval_s=60.0)
    gated.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        ask = {"query": FEW[2], "k": 100}
        begun = pool.submit(server.client.post, "/v1/galleries/live/search", json=ask)
        wait_until(lambda: [FEW[2]] in gated.begun)
        publish_copy(place.many, place.live)
        assert reload(server).status_code == 200
        assert registry.statuses()[0].num_open == 2
        gated.gate.set()
        answer = begun.result().json()
    assert answer["version"] == old
    assert {hit["text"] for hit in answer["hits"]} == set(FEW)
    wait_until(lambda: registry.statuses()[0].num_open == 1)


def test_shutdown_does_not_wait_for_a_load(serve, place, monkeypatch) -> None:
    held, begun = threading.Event(), threading.Event()

    def stuck(self, folder, **options):
        begun.set()
        held.wait(30)
        raise OSError("late")

    server = serve(found=place.open(), reload_interval_s=0.01)
    monkeypatch.setattr(Opener, "open", stuck)
    publish_copy(place.many, place.live)
    assert begun.wait(10)
    server.__exit__()
    assert not server._thread.is_alive()
    assert server.app.state.ended is False  # so that the command ends the process itself
    held.set()
