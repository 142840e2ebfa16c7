"""The rows of a version on disk: what `update`, `delete` and `merge` make the next one from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cots_model.errors import GalleryError
from index_builder.items import Item, ItemTable, read_items
from index_builder.join import Piece
from index_builder.manifest import (
    EXCLUDED_FILE,
    FRAME_TIMES_FILE,
    FRAMES_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    PLACES_FILE,
    SKIPPED_FILE,
    VECTORS_FILE,
    Manifest,
    check_file,
    parse_manifest,
)
from index_builder.parts import read_skips
from index_builder.publish import Pointer, read_pointer, version_folder
from index_builder.sources.entry import Skip
from index_builder.vectors import Vectors, open_vectors


class VersionRows:
    """Items, vectors and frames of one version; no index is loaded."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open a version; its checksums are the caller's to check (`check_version`)."""
        shape = (manifest.count, manifest.dim)
        self.folder = folder
        self.manifest = manifest
        self.items: ItemTable = read_items(folder / ITEMS_FILE)
        self._vectors = open_vectors(folder / VECTORS_FILE, shape, manifest.vectors)
        self._frames: tuple[np.ndarray, np.ndarray] | None = None
        if manifest.modality == "video":
            self._frames = (_load(folder / FRAMES_FILE), _load(folder / FRAME_TIMES_FILE))

    @classmethod
    def open(cls, folder: Path) -> VersionRows:
        """Open the version in a folder."""
        path = folder / MANIFEST_FILE
        return cls(folder, parse_manifest(path.read_bytes(), path))

    def item(self, row: int) -> Item:
        """The item of a row."""
        return self.items.item(row)

    def vectors_of(self, row: int) -> tuple[Vectors, np.ndarray | None, np.ndarray | None]:
        """Vector `[E]`, and of a video the vectors `[F,E]` and times `[F]` of its frames."""
        [vector_E] = self._vectors.rows(np.array([row]))
        if self._frames is None:
            return vector_E, None, None
        frames_NFE, times_NF = self._frames
        return vector_E, np.array(frames_NFE[row]), np.array(times_NF[row])

    def excluded(self) -> set[str]:
        """Ids that `delete` took out, and that an update does not bring back."""
        return read_excluded(self.folder / EXCLUDED_FILE)

    def piece(self, *, place: int = 0, keep_N: np.ndarray | None = None) -> Piece:
        """All rows, or those kept, for the join.

        Args:
            place: of every row and skip in the order of sources, where the version knows no better.
            keep_N: which rows to take.
        """
        manifest = self.manifest
        places, num_skips = None, sum(manifest.skipped.values())
        if manifest.shard is not None:
            places = _load(self.folder / PLACES_FILE)
        if places is None:
            places = np.full(manifest.count + num_skips, place, np.int64)
        skip_places = places[manifest.count :]

        def skips() -> Iterator[tuple[int, Skip]]:
            lines = read_skips(self.folder / SKIPPED_FILE)
            return zip(skip_places.tolist(), lines, strict=True)

        return Piece(
            folder=self.folder,
            vectors=manifest.vectors,
            places_N=np.array(places[: manifest.count]),
            skips=skips,
            keep_N=keep_N,
        )


def read_manifest(root: Path, pointer: Pointer | None = None) -> tuple[Path, Manifest]:
    """Folder and manifest of the published version.

    Args:
        root: the gallery folder.
        pointer: to the version, where it was read already.

    Raises:
        GalleryError: if there is no gallery, or the pointer or the manifest is damaged.
    """
    pointer = pointer or read_pointer(root)
    folder = version_folder(root, pointer.version)
    path = folder / MANIFEST_FILE
    try:
        data = path.read_bytes()
    except OSError as err:
        raise GalleryError(f"{path} cannot be read ({err.strerror}); build again") from err
    if hashlib.sha256(data).hexdigest() != pointer.manifest_sha256:
        raise GalleryError(
            f"{path} is damaged: its sha256 is not the one that was published; build again"
        )
    return folder, parse_manifest(data, path)


def check_version(folder: Path, manifest: Manifest) -> None:
    """Hash every file before a new version is made from it.

    Raises:
        GalleryError: naming the damaged file, or if its rows are kept in Milvus.
    """
    if manifest.index.kind == "milvus":
        raise GalleryError(
            f"{folder} keeps its items in Milvus and cannot be changed; change the gallery that it "
            "was exported from, and export that again"
        )
    for name, expected in manifest.files.items():
        problem = check_file(folder / name, expected)
        if problem:
            raise GalleryError(f"{folder / name} is damaged: {problem}; build the gallery again")


def read_excluded(path: Path) -> set[str]:
    """Read `excluded.jsonl`."""
    with path.open("rb") as lines:
        return {json.loads(line)["id"] for line in lines}


def write_excluded(ids: Iterable[str], path: Path) -> None:
    """Write `excluded.jsonl`: one id a line, sorted."""
    with path.open("w", encoding="utf-8") as handle:
        handle.writelines(
            json.dumps({"id": item_id}, ensure_ascii=False) + "\n" for item_id in sorted(ids)
        )


def _load(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as err:
        raise GalleryError(f"{path} is damaged ({err}); build the gallery again") from err
    return array
