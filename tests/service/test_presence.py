"""Galleries that come and go, and looks at a bad moment that must take none away."""

from __future__ import annotations

import shutil

from index_builder.manifest import INDEX_FILE
from service import presence
from tests.service.conftest import error_of, wait_until
from tests.service.places import FEW, MANY, count, reload
from tests.service.versions import cut, publish_copy


def test_galleries_appear_and_disappear(serve, place, monkeypatch) -> None:
    monkeypatch.setattr(presence, "GONE_S", 0.1)
    server = serve(found=place.open(), reload_interval_s=0.05)
    publish_copy(place.many, place.root / "late")
    wait_until(lambda: count(server, "late") == len(MANY))
    shutil.rmtree(place.live)
    wait_until(lambda: server.client.get("/v1/galleries/live").status_code == 404)
    assert reload(server).status_code == 404
    ready = server.client.get("/readyz")
    assert (ready.status_code, ready.json()["warnings"]) == (200, [])
    assert count(server, "late") == len(MANY)


def test_root_that_is_suddenly_empty_takes_no_gallery_away(serve, place, monkeypatch) -> None:
    """As a mount point is whose disk went away: looks that miss everything say nothing."""
    monkeypatch.setattr(presence, "GONE_S", 0.0)
    registry = place.open()
    server = serve(found=registry, reload_interval_s=0)
    away = place.root.with_name("away")
    away.mkdir()
    place.live.rename(away / "live")
    for _ in range(3):
        registry.poll()
    assert count(server) == len(FEW)
    assert server.client.post("/v1/galleries/live/search", json={"query": "a"}).status_code == 200
    ready = server.client.get("/readyz")
    assert ready.status_code == 200
    [warning] = ready.json()["warnings"]
    assert "holds none any more" in warning
    assert str(place.root) not in ready.text
    assert "cots_galleries_root_up 0.0" in server.client.get("/metrics").text
    assert "holds none any more" in error_of(reload(server), 503)["message"]
    (away / "live").rename(place.live)
    assert reload(server).status_code == 200
    assert server.client.get("/readyz").json()["warnings"] == []
    assert "cots_galleries_root_up 1.0" in server.client.get("/metrics").text


def test_gallery_that_is_away_for_a_moment_is_not_dropped_by_a_reload(
    serve, place, monkeypatch
) -> None:
    monkeypatch.setattr(presence, "GONE_S", 3600.0)
    publish_copy(place.few, place.root / "other")
    server = serve(found=place.open(), reload_interval_s=0)
    place.live.rename(place.root.with_name("aside"))
    for _ in range(2):  # looks that come together see the same moment
        error = error_of(reload(server), 404)
        assert (error["code"], error["param"]) == ("gallery_not_found", "gallery")
        assert "is not there; what was loaded of it is served for now" in error["message"]
    assert count(server) == len(FEW)
    version = publish_copy(place.many, place.live)
    assert reload(server).json()["version"] == version
    shutil.rmtree(place.live)
    assert error_of(reload(server), 404)  # counted from here again
    assert count(server) == len(MANY)
    monkeypatch.setattr(presence, "GONE_S", 0.0)
    assert "lists those there are" in error_of(reload(server), 404)["message"]
    assert server.client.get("/v1/galleries/live").status_code == 404


def test_gallery_that_comes_back_is_counted_from_where_it_was(serve, place, monkeypatch) -> None:
    monkeypatch.setattr(presence, "GONE_S", 0.0)
    publish_copy(place.few, place.root / "other")
    server = serve(found=place.open(), reload_interval_s=0)

    def figures() -> dict[str, float]:
        lines = server.client.get("/metrics").text.splitlines()
        found = [line.rpartition(" ") for line in lines if 'gallery="live"' in line]
        return {name: float(value) for name, _, value in found}

    loads = 'cots_gallery_loads_total{gallery="live",outcome="loaded"}'
    items, up = 'cots_gallery_items{gallery="live"}', 'cots_gallery_up{gallery="live"}'
    made = 'cots_gallery_version_timestamp_seconds{gallery="live"}'
    publish_copy(place.many, place.live)
    assert reload(server).status_code == 200
    before = figures()
    assert (before[loads], before[items], before[up]) == (2, len(MANY), 1)
    shutil.rmtree(place.live)
    assert reload(server).status_code == 404
    gone = figures()
    assert (gone[loads], gone[items], gone[up], gone[made]) == (2, 0, 0, 0)
    publish_copy(place.few, place.live)
    assert reload(server).status_code == 200
    again = figures()
    assert (again[loads], again[items], again[up]) == (3, len(FEW), 1)


def test_gallery_that_was_served_and_comes_back_bad_is_a_warning(serve, place, monkeypatch) -> None:
    """One bad rebuild takes no server with other galleries out of its balancer."""
    monkeypatch.setattr(presence, "GONE_S", 0.0)
    publish_copy(place.few, place.root / "other")
    server = serve(found=place.open(), reload_interval_s=0)
    shutil.rmtree(place.live)
    assert reload(server).status_code == 404
    publish_copy(place.few, place.live, unseen=cut(INDEX_FILE))
    assert reload(server).status_code == 409
    ready = server.client.get("/readyz")
    assert (ready.status_code, ready.json()["reasons"]) == (200, [])
    assert "live" in ready.json()["warnings"][0]


def test_root_that_cannot_be_listed_changes_nothing(serve, place) -> None:
    server = serve(found=place.open(), reload_interval_s=0.05)
    place.root.rename(place.root.with_name("away"))
    wait_until(lambda: server.client.get("/readyz").json()["warnings"])
    assert server.client.get("/readyz").status_code == 200
    assert count(server) == len(FEW)
    assert error_of(reload(server), 503)["code"] == "gallery_unavailable"
    place.root.with_name("away").rename(place.root)
    wait_until(lambda: not server.client.get("/readyz").json()["warnings"])


def test_gallery_exchanged_for_another_is_never_missing(place) -> None:
    registry = place.open()
    shutil.rmtree(place.live)
    registry.poll()
    assert len(registry.get("live")) == len(FEW)
    publish_copy(place.many, place.live)
    registry.poll()
    assert len(registry.get("live")) == len(MANY)


def test_reload_finds_a_gallery_that_no_look_has_seen(serve, place) -> None:
    server = serve(found=place.open(), reload_interval_s=0)
    assert error_of(reload(server, "late"), 404)["code"] == "gallery_not_found"
    version = publish_copy(place.many, place.root / "late")
    answer = reload(server, "late").json()
    assert answer == {"gallery": "late", "previous_version": None, "version": version}
