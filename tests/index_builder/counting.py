"""An fsspec file system in memory that notes what is asked of it."""

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

Note = tuple[Any, ...]


class CountingFileSystem(MemoryFileSystem):
    """Notes `("info",)`, `("ls", folder)` and `("bytes", start, end)`."""

    protocol = "counting"
    root_marker = "/"
    notes: ClassVar[list[Note]] = []

    @classmethod
    def start(cls) -> list[Note]:
        """Make `counting://` known; gives the list of notes, emptied."""
        fsspec.register_implementation("counting", cls, clobber=True)
        cls.notes.clear()
        return cls.notes

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("counting://", "memory://", 1))

    def info(self, path: str, **kwargs: Any) -> Any:
        self.notes.append(("info",))
        return super().info(path, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self.notes.append(("ls", path))
        return super().ls(path, detail=detail, **kwargs)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> Any:
        self.notes.append(("bytes", start, end))
        data = self.store[self._strip_protocol(path)].getvalue()
        return data[start:end]
