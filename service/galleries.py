"""The galleries of one root folder, by name, each at the version that is served now.

A gallery that cannot be opened does not take down the others: it is remembered with its reason,
answers 503 itself, and is named by `/readyz`. A new version that cannot be opened does not take
down the old one. What is served is a mapping that is replaced, never changed: a request takes a
gallery from it once, and has that version to its end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cots_model.encoder import Vectors
from cots_model.errors import CotsError, GalleryError
from index_builder.gallery import Gallery
from index_builder.publish import read_pointer
from service.errors import ApiError, gallery_not_found
from service.gallery_status import GalleryStatus, Refusal
from service.opening import Opened, Opener, fault_of, message_of
from service.root import find_galleries, list_galleries
from service.versions import OpenVersions

log = logging.getLogger(__name__)

_RETRY_FACTOR = 100
"""Of the time that went into a refused version, this much passes before it is tried again."""


@dataclass(frozen=True)
class _Slot:
    """One name under the root."""

    status: GalleryStatus
    gallery: Gallery | None = None


class Registry:
    """What is found under the root, and what of it is served."""

    def __init__(self, root: Path, opener: Opener) -> None:
        """Begin with nothing; `Registry.open` is the way here."""
        self._root = root
        self._opener = opener
        self._slots: Mapping[str, _Slot] = {}
        self._found_at_start: frozenset[str] = frozenset()
        self._missing: frozenset[str] = frozenset()
        self._root_fault: str | None = None
        self._versions = OpenVersions()
        self._loading = threading.Lock()

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        expected_fingerprint: str,
        device: str = "auto",
        probe_QE: Vectors | None = None,
        memory_budget_bytes: int | None = None,
    ) -> Registry:
        """Open every gallery under `root`, to be searched on `device`; the rest as in `Opener`.

        Raises:
            InputError: if `root` is missing, is itself a gallery, or holds none.
            CotsError: if an index cannot be on the device asked for.
            GalleryError: if not one gallery can be opened.
        """
        opener = Opener(
            expected_fingerprint=expected_fingerprint,
            device=device,
            probe_QE=probe_QE,
            memory_budget_bytes=memory_budget_bytes,
        )
        registry = cls(root, opener)
        folders = find_galleries(root)
        for folder in folders:
            registry._look(folder, at_start=True)
        registry._found_at_start = frozenset(folder.name for folder in folders)
        if not registry.loaded:
            refused = "; ".join(registry.refused.values())
            raise GalleryError("no gallery could be opened: " + refused)
        return registry

    @property
    def loaded(self) -> Mapping[str, Gallery]:
        """The galleries that answer, as they are now."""
        slots = self._slots.items()
        return {name: slot.gallery for name, slot in slots if slot.gallery is not None}

    @property
    def refused(self) -> Mapping[str, str]:
        """Why each of the others does not, as the log says it."""
        return {
            name: slot.status.refusal.message
            for name, slot in self._slots.items()
            if slot.gallery is None and slot.status.refusal is not None
        }

    def get(self, name: str) -> Gallery:
        """The version of a gallery that is served now.

        Raises:
            ApiError: 404 for an unknown name, 503 for a gallery that was refused.
        """
        slot = self._slots.get(name)
        if slot is None:
            raise gallery_not_found(name)
        if slot.gallery is None:
            message = f"gallery {name!r} is damaged and not served; see the server's log"
            raise ApiError(503, "gallery_unavailable", message, param="gallery")
        return slot.gallery

    def status(self, name: str) -> GalleryStatus | None:
        """How a gallery does; `None` if there is none of that name."""
        slot = self._slots.get(name)
        return None if slot is None else self._counted(slot.status)

    def statuses(self) -> list[GalleryStatus]:
        """How all galleries do, by name."""
        return [self._counted(self._slots[name].status) for name in sorted(self._slots)]

    def reasons(self) -> list[str]:
        """One line for every gallery that was there at the start and was never served."""
        return self._problems(lambda status: self._is_lost(status))

    def warnings(self) -> list[str]:
        """One line for every other thing that is wrong, while all that was served still is."""
        root = [] if self._root_fault is None else [self._root_fault]
        return root + self._problems(lambda status: not self._is_lost(status))

    def poll(self, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Look for new versions, new galleries and galleries that are gone; load what is new.

        A gallery that is gone is served until a second look, so that its folder can be exchanged
        for another. A root that cannot be listed changes nothing.

        Args:
            stop: asked between galleries.
        """
        with self._loading:
            folders = self._list()
            if folders is None:
                return
            gone = self._slots.keys() - folders.keys()
            self._drop(gone & self._missing)
            self._missing = frozenset(gone)
            for folder in folders.values():
                if stop():
                    return
                self._look(folder)
            self._versions.collect()

    def reload(self, name: str, *, asked_s: float | None = None) -> GalleryStatus | None:
        """Look at one gallery now, and load its current version if that is not the one served.

        Args:
            name: of the gallery; looked up in the listing of the root.
            asked_s: a version that was refused is tried again if that was before; now if not given.

        Returns:
            how it does; `None` if there is no such gallery.

        Raises:
            GalleryError: if the root cannot be listed.
        """
        asked_s = time.monotonic() if asked_s is None else asked_s
        with self._loading:
            folders = self._list()
            if folders is None:
                raise GalleryError(f"{self._root} cannot be listed; check it")
            if name in folders:
                self._look(folders[name], asked_s=asked_s)
            else:
                self._drop({name})
        return self.status(name)

    def _list(self) -> dict[str, Path] | None:
        try:
            folders = list_galleries(self._root)
        except OSError:
            if self._root_fault is None:
                log.exception("the root of the galleries cannot be listed")
            self._root_fault = "the folder of the galleries cannot be listed; see the server's log"
            return None
        self._root_fault = None
        return {folder.name: folder for folder in folders}

    def _look(self, folder: Path, *, asked_s: float = 0.0, at_start: bool = False) -> None:
        """Serve what a gallery publishes, if it is new and good (lock held)."""
        slot = self._slots.get(folder.name) or _Slot(GalleryStatus(folder.name))
        version, refusal = _published(folder), slot.status.refusal
        if slot.gallery is not None and slot.gallery.version == version:
            if refusal is not None:  # it was taken back
                self._put(_Slot(replace(slot.status, refusal=None), slot.gallery))
            return
        began_s = time.monotonic()
        if refusal is not None and refusal.holds(version, now_s=began_s, asked_s=asked_s):
            return
        try:
            opened = self._opener.open(folder, held_bytes=self._versions.held_bytes())
        except Exception as err:  # whatever is wrong with it, the old version goes on
            if at_start and isinstance(err, CotsError) and not isinstance(err, GalleryError):
                raise
            self._refuse(slot, version, err, began_s)
        else:
            self._take(slot, opened, time.monotonic() - began_s)

    def _take(self, slot: _Slot, opened: Opened, load_s: float) -> None:
        gallery, before = opened.gallery, slot.status
        status = replace(
            before,
            version=gallery.version,
            count=len(gallery),
            memory_bytes=opened.memory_bytes,
            loaded=datetime.now(UTC),
            load_s=load_s,
            refusal=None,
            num_loaded=before.num_loaded + 1,
        )
        self._versions.add(before.name, gallery, opened.memory_bytes)
        self._put(_Slot(status, gallery))
        if slot.gallery is not None:
            self._versions.retire(slot.gallery)
        extra = {"gallery": before.name, "version": status.version, "previous": before.version}
        log.info("gallery loaded", extra={**extra, "load_s": round(load_s, 3)})

    def _refuse(self, slot: _Slot, version: str | None, err: Exception, began_s: float) -> None:
        before, message, now_s = slot.status, message_of(err), time.monotonic()
        known = before.refusal
        retry_s = now_s + _RETRY_FACTOR * (now_s - began_s)
        refusal = Refusal(version, fault_of(err), message, datetime.now(UTC), began_s, retry_s)
        if known is not None and (known.version, known.fault) == (version, refusal.fault):
            refusal = replace(refusal, since=known.since)
            self._put(_Slot(replace(before, refusal=refusal), slot.gallery))
            return
        status = replace(before, refusal=refusal, num_refused=before.num_refused + 1)
        self._put(_Slot(status, slot.gallery))
        extra = {"gallery": before.name, "version": version, "served": before.version}
        unforeseen = None if isinstance(err, CotsError) else err
        log.error("gallery refused: %s", message, extra=extra, exc_info=unforeseen)

    def _put(self, slot: _Slot) -> None:
        self._slots = {**self._slots, slot.status.name: slot}

    def _drop(self, names: set[str]) -> None:
        """Serve galleries no more whose folders are gone."""
        for name in names & self._slots.keys():
            gallery = self._slots[name].gallery
            self._slots = {other: slot for other, slot in self._slots.items() if other != name}
            if gallery is not None:
                self._versions.retire(gallery)
            log.warning("gallery is gone", extra={"gallery": name})

    def _counted(self, status: GalleryStatus) -> GalleryStatus:
        return replace(status, num_open=self._versions.count(status.name))

    def _is_lost(self, status: GalleryStatus) -> bool:
        return status.version is None and status.name in self._found_at_start

    def _problems(self, wanted: Callable[[GalleryStatus], bool]) -> list[str]:
        problems = [status.problem() for status in self.statuses() if wanted(status)]
        return [problem for problem in problems if problem is not None]


def _published(folder: Path) -> str | None:
    """The version that a gallery points to; `None` if that cannot be told."""
    try:
        return read_pointer(folder).version
    except GalleryError:
        return None
