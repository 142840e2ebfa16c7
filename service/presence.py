"""Which galleries are under the root, seen again and again, and which of those known are gone.

A look may come at a bad moment: a folder is away while it is exchanged for another, and a mount
point is empty while its disk is away. So a gallery is gone only once it was missed for a while, and
a root in which there is nothing any more tells nothing about the galleries that were in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.root import list_galleries

log = logging.getLogger(__name__)

GONE_S = 2.0
"""A gallery that one look missed is gone if another misses it so much later, and none saw it."""

_UNLISTED = "the folder of the galleries cannot be listed; see the server's log"
_EMPTY = "the folder of the galleries holds none any more; those that are open are served on"


@dataclass(frozen=True)
class Seen:
    """What one look at the root found.

    Attributes:
        folders: of the galleries, by name.
        away: known galleries that are not there now.
        gone: those of them that were missed for long enough.
    """

    folders: Mapping[str, Path]
    away: frozenset[str]
    gone: frozenset[str]


class Presence:
    """Looks at the root; to be used from one thread at a time.

    Attributes:
        fault: why the last look told nothing, in words that tell nothing of this machine; `None` if
            it did.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._missed_s: dict[str, float] = {}
        self.fault: str | None = None

    def look(self, known: Collection[str], *, serves: bool) -> Seen | None:
        """Look now; `None` if the root is at fault, which changes nothing.

        Args:
            known: names of the galleries that earlier looks found and that are not gone.
            serves: whether any of them is served: then a root without galleries is a fault.
        """
        try:
            found = list_galleries(self._root)
        except OSError as err:
            self._tell(_UNLISTED, err)
            return None
        self._tell(_EMPTY if serves and not found else None)
        if self.fault is not None:
            return None
        folders = {folder.name: folder for folder in found}
        now_s = time.monotonic()
        away = frozenset(known).difference(folders)
        for name in away.difference(self._missed_s):
            log.warning("gallery is away; it is served for a while", extra={"gallery": name})
        self._missed_s = {name: self._missed_s.get(name, now_s) for name in away}
        gone = {name for name, missed_s in self._missed_s.items() if now_s - missed_s >= GONE_S}
        return Seen(folders, away, frozenset(gone))

    def _tell(self, fault: str | None, err: OSError | None = None) -> None:
        if fault != self.fault:
            if fault is None:
                log.info("the root of the galleries is there again")
            else:
                log.error(fault, extra={"root": str(self._root)}, exc_info=err)
        self.fault = fault
