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
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cots_model.encoder import Vectors
from cots_model.errors import CotsError, GalleryError
from index_builder.gallery import Gallery
from index_builder.indexes.base import go_on
from index_builder.publish import Pointer, read_pointer
from service.errors import ApiError, gallery_away, gallery_not_found, root_at_fault
from service.gallery_status import GalleryStatus, Refusal
from service.opening import Opened, Opener, fault_of, message_of
from service.presence import Presence
from service.root import find_galleries
from service.versions import OpenVersions

log = logging.getLogger(__name__)

_RETRY_FACTOR = 100
"""Of the time that went into a refused version, this much passes before it is tried again."""
_TRIES = 3
"""To open what a gallery publishes, in one look, while it is replaced again and again."""
_REST_S = 0.001
"""Between blocks of work in Python, which else takes its time from the requests."""


@dataclass(frozen=True)
class _Slot:
    """One name under the root."""

    status: GalleryStatus
    gallery: Gallery | None = None


class Registry:
    """What is found under the root, and what of it is served."""

    def __init__(self, root: Path, opener: Opener) -> None:
        """Begin with nothing; `Registry.open` is the way here."""
        self._presence = Presence(root)
        self._opener = opener
        self._slots: Mapping[str, _Slot] = {}
        self._past: dict[str, GalleryStatus] = {}  # of galleries that are gone: their counts
        self._found_at_start: frozenset[str] = frozenset()
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
        slots = self._slots  # another thread may put others in their place
        return [self._counted(slots[name].status) for name in sorted(slots)]

    def reasons(self) -> list[str]:
        """One line for every gallery that was there at the start and was never served."""
        return self._problems(lambda status: self._is_lost(status))

    def warnings(self) -> list[str]:
        """One line for every other thing that is wrong, while all that was served still is."""
        root = [] if self.root_fault is None else [self.root_fault]
        return root + self._problems(lambda status: not self._is_lost(status))

    @property
    def root_fault(self) -> str | None:
        """Why the root told nothing when it was last looked at; `None` if it did."""
        return self._presence.fault

    def poll(self, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Look for new versions, new galleries and galleries that are gone; load what is new.

        A gallery that is away is served until it is gone (`Presence`), so that its folder can be
        exchanged for another. A root that cannot be listed, or is empty, changes nothing.

        Args:
            stop: asked between galleries.
        """
        with self._loading:
            seen = self._presence.look(self._slots.keys(), serves=bool(self.loaded))
            if seen is None:
                return
            self._drop(seen.gone)
            for folder in seen.folders.values():
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
            ApiError: 404 if its folder is away and it is still served, 503 if the root cannot be
                listed, or is empty.
        """
        asked_s = time.monotonic() if asked_s is None else asked_s
        with self._loading:
            seen = self._presence.look(self._slots.keys(), serves=bool(self.loaded))
            if seen is None:
                raise root_at_fault(str(self.root_fault))
            self._drop(seen.gone)
            if name in seen.folders:
                self._look(seen.folders[name], asked_s=asked_s)
            elif name in seen.away - seen.gone:
                raise gallery_away(name)
        return self.status(name)

    def _look(self, folder: Path, *, asked_s: float = 0.0, at_start: bool = False) -> None:
        """Serve what a gallery publishes, if it is new and good (lock held).

        Where versions are published faster than they can be opened, that is left to the next look.
        """
        for _ in range(_TRIES):
            if self._settle(folder, asked_s=asked_s, at_start=at_start):
                return
        log.warning("versions are replaced while they are opened", extra={"gallery": folder.name})

    def _settle(self, folder: Path, *, asked_s: float, at_start: bool) -> bool:
        """Serve or refuse what is published; false if it was replaced while it was opened.

        Builds remove the versions before the last, also while they are opened, so a failure to open
        one that is published no more says nothing.
        """
        name = folder.name
        slot = self._slots.get(name) or _Slot(self._past.get(name, GalleryStatus(name)))
        published, refusal = _published(folder), slot.status.refusal
        version = published.version if isinstance(published, Pointer) else None
        if slot.gallery is not None and slot.gallery.version == version:
            if refusal is not None:  # it was taken back
                self._put(_Slot(replace(slot.status, refusal=None), slot.gallery))
            return True
        began_s = time.monotonic()
        if refusal is not None and refusal.holds(version, now_s=began_s, asked_s=asked_s):
            return True
        if isinstance(published, GalleryError):
            self._refuse(slot, None, published, began_s)
            return True
        try:
            opened = self._opener.open(
                folder,
                pointer=published,
                held_bytes=self._versions.held_bytes(),
                between=go_on if at_start else _rest,
            )
        except Exception as err:  # whatever is wrong with it, the old version goes on
            if at_start and isinstance(err, CotsError) and not isinstance(err, GalleryError):
                raise
            if _published(folder) != published:
                return False
            self._refuse(slot, version, err, began_s)
        else:
            self._take(slot, opened, time.monotonic() - began_s)
        return True

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

    def _drop(self, names: Collection[str]) -> None:
        """Serve galleries no more that are gone; what was counted of them is kept."""
        for name in self._slots.keys() & names:
            slot = self._slots[name]
            self._slots = {other: kept for other, kept in self._slots.items() if other != name}
            self._past[name] = GalleryStatus(
                name, num_loaded=slot.status.num_loaded, num_refused=slot.status.num_refused
            )
            if slot.gallery is not None:
                self._versions.retire(slot.gallery)
            log.warning("gallery is gone", extra={"gallery": name})

    def _counted(self, status: GalleryStatus) -> GalleryStatus:
        return replace(status, num_open=self._versions.count(status.name))

    def _is_lost(self, status: GalleryStatus) -> bool:
        return not status.num_loaded and status.name in self._found_at_start

    def _problems(self, wanted: Callable[[GalleryStatus], bool]) -> list[str]:
        problems = [status.problem() for status in self.statuses() if wanted(status)]
        return [problem for problem in problems if problem is not None]


def _published(folder: Path) -> Pointer | GalleryError:
    """What a gallery points to, or why that cannot be told."""
    try:
        return read_pointer(folder)
    except GalleryError as err:
        return err


def _rest() -> None:
    time.sleep(_REST_S)
