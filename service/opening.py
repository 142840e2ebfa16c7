"""Opening one version for serving: everything that can be wrong is found before a request sees it.

In this order: the memory it takes beside what is free, its checksums and the model that made it
(`Gallery.open`), a self-test, and the columns of JSON that filters need decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cots_model.encoder import Vectors
from cots_model.errors import CotsError, GalleryError
from index_builder.gallery import Gallery, OtherModelError, read_manifest
from index_builder.indexes.base import OnBlock, go_on
from index_builder.indexes.gpu import GpuMemoryError
from index_builder.indexes.memory import available_bytes
from index_builder.publish import Pointer
from index_builder.self_test import SelfTestError, self_test
from index_builder.version_memory import version_bytes

Fault = Literal["damaged", "other_model", "self_test", "too_big", "failed"]

FAULTS: dict[Fault, str] = {
    "damaged": "a file of it is damaged, missing or cannot be read",
    "other_model": "another model made it",
    "self_test": "it failed its self-test",
    "too_big": "there is too little memory for it",
    "failed": "it could not be opened",
}
"""Why a version is refused, in words that tell nothing of this machine."""


class MemoryBudgetError(GalleryError):
    """A version takes more memory than there is for it."""


def fault_of(err: Exception) -> Fault:
    """Which fault an exception of `Opener.open` stands for."""
    match err:
        case OtherModelError():
            return "other_model"
        case SelfTestError():
            return "self_test"
        case MemoryBudgetError() | GpuMemoryError() | MemoryError():
            return "too_big"
        case GalleryError() | OSError():
            return "damaged"
    return "failed"


@dataclass(frozen=True)
class Opened:
    """An opened version that may be served.

    Attributes:
        gallery: the version.
        memory_bytes: main memory that it takes, about.
    """

    gallery: Gallery
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Opener:
    """How versions are opened.

    Attributes:
        expected_fingerprint: of the model that embeds the queries.
        device: where to search, as `open_index` takes it.
        probe_QE: `[Q,E]` float32 vectors of that model for the self-test, if there are any.
        memory_budget_bytes: what all open versions may take together; `None` leaves it to what the
            machine, or the container, has free.
        free_bytes: main memory that can be taken now; `None` where the system does not say.
    """

    expected_fingerprint: str
    device: str = "auto"
    probe_QE: Vectors | None = None
    memory_budget_bytes: int | None = None
    free_bytes: Callable[[], int | None] = available_bytes

    def open(
        self, folder: Path, *, pointer: Pointer, held_bytes: int, between: OnBlock = go_on
    ) -> Opened:
        """Open a version of a gallery; all that a request may need of it is there afterwards.

        Args:
            folder: of the gallery.
            pointer: to the version, read once, so that everything is done with the same.
            held_bytes: what the versions that are open already take.
            between: called again and again during long work in Python, to let other threads run.

        Raises:
            GalleryError: if it is damaged, of another model, too big, or fails its self-test.
            CotsError: as `open_index`, for the device.
        """
        version_folder, manifest = read_manifest(folder, pointer)
        needed_bytes = version_bytes(version_folder, manifest)
        self._check_memory(f"{folder} {manifest.version}", needed_bytes, held_bytes)
        gallery = Gallery.open(
            folder,
            pointer=pointer,
            expected_fingerprint=self.expected_fingerprint,
            device=self.device,
        )
        self_test(gallery, self.probe_QE)
        gallery.filters.decode(between)
        return Opened(gallery, needed_bytes)

    def _check_memory(self, what: str, needed_bytes: int, held_bytes: int) -> None:
        free_bytes = self.free_bytes()
        if free_bytes is not None and needed_bytes > free_bytes:
            raise MemoryBudgetError(
                f"{what} takes about {needed_bytes:,} bytes of memory and {free_bytes:,} are free; "
                "free some, or build it with --index ivfpq, which is smallest"
            )
        budget_bytes = self.memory_budget_bytes
        if budget_bytes is not None and held_bytes + needed_bytes > budget_bytes:
            raise MemoryBudgetError(
                f"{what} takes about {needed_bytes:,} bytes of memory beside the {held_bytes:,} of "
                f"the versions that are open, and memory_budget_bytes is {budget_bytes:,}; raise "
                "it, or build the gallery with --index ivfpq, which is smallest"
            )


def message_of(err: Exception) -> str:
    """What the log says of a refusal; an exception that nobody foresaw is named by its type."""
    return str(err) if isinstance(err, CotsError) else f"{type(err).__name__}: {err}"
