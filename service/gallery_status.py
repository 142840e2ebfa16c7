"""How a gallery does: what is served of it, and what was refused; for routes and figures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from service.opening import FAULTS, Fault


@dataclass(frozen=True)
class Refusal:
    """A version that is published and not served.

    Attributes:
        version: its name; `None` if the gallery does not even say.
        fault: what is wrong with it.
        message: the same for the log, with places on this machine.
        since: when it was first refused.
        began_s: when it was last tried, on the clock of `time.monotonic`.
        retry_s: when it will be tried again, as a fault can pass.
    """

    version: str | None
    fault: Fault
    message: str
    since: datetime
    began_s: float
    retry_s: float

    def holds(self, version: str | None, *, now_s: float, asked_s: float) -> bool:
        """Whether `version` need not be tried: it was, and neither time nor a request asks again.

        Args:
            version: that is published.
            now_s: on the clock of `time.monotonic`.
            asked_s: when somebody asked for it last, on the same clock.
        """
        return self.version == version and now_s < self.retry_s and asked_s <= self.began_s


@dataclass(frozen=True)
class GalleryStatus:
    """How one gallery does.

    Attributes:
        name: of the gallery.
        version: that is served; `None` if none is.
        count: items of it.
        memory_bytes: main memory that it takes, about.
        num_open: versions that are open: the one served, and old ones until their last query.
        loaded: when it was taken.
        load_s: how long that took.
        refusal: of the version that is published, if it is not the one served.
        num_loaded: versions taken since the start of the process.
        num_refused: versions refused since then.
    """

    name: str
    version: str | None = None
    count: int = 0
    memory_bytes: int = 0
    num_open: int = 0
    loaded: datetime | None = None
    load_s: float = 0.0
    refusal: Refusal | None = None
    num_loaded: int = 0
    num_refused: int = 0

    def problem(self) -> str | None:
        """What is wrong, in words that tell nothing of this machine; `None` if all is well."""
        if self.refusal is None:
            return None
        if self.version is None:
            return f"gallery {self.name!r} could not be loaded"
        which = f"version {self.refusal.version}" if self.refusal.version else "its new version"
        return (
            f"gallery {self.name!r} goes on with version {self.version}: {which} was refused, "
            f"{FAULTS[self.refusal.fault]}"
        )
