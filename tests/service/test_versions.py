"""Open versions are counted without being kept, and found in reference cycles."""

from __future__ import annotations

import gc

import pytest

from index_builder.gallery import Gallery
from service import versions
from service.versions import OpenVersions


class Cycle:
    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.me = self


def test_version_is_open_until_the_last_that_holds_it(root) -> None:
    found = OpenVersions()
    gallery = Gallery.open(root / "pets")
    found.add("pets", gallery, 1000)
    found.retire(gallery)
    found.collect()
    assert (found.count("pets"), found.count("other"), found.held_bytes()) == (1, 0, 1000)
    del gallery
    assert (found.count("pets"), found.held_bytes()) == (0, 0)


def test_only_old_versions_in_a_cycle_are_looked_for(root, monkeypatch) -> None:
    found = OpenVersions()
    gallery = Gallery.open(root / "pets")
    found.add("pets", gallery, 1000)
    Cycle(gallery)
    gc.disable()
    try:
        found.retire(gallery)
        del gallery
        found.collect()  # it may still be at work
        assert found.count("pets") == 1
        monkeypatch.setattr(versions, "COLLECT_AFTER_S", 0.0)
        found.collect()
        assert found.count("pets") == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("looks", [1, 5])
def test_version_in_use_is_looked_for_once(root, monkeypatch, looks) -> None:
    collected = []
    monkeypatch.setattr(versions, "COLLECT_AFTER_S", 0.0)
    monkeypatch.setattr(versions.gc, "collect", lambda: collected.append(1))
    found = OpenVersions()
    gallery = Gallery.open(root / "pets")
    found.add("pets", gallery, 1000)
    found.retire(gallery)
    for _ in range(looks):
        found.collect()
    assert len(collected) == 1
