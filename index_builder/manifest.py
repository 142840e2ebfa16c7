"""The manifest of a gallery version: what it holds, which model made it, and every file's hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cots_model.errors import GalleryError

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.faiss"
VECTORS_FILE = "vectors.npy"
ITEMS_FILE = "items.parquet"
SKIPPED_FILE = "skipped.jsonl"
VERSION_FILES = (INDEX_FILE, VECTORS_FILE, ITEMS_FILE, SKIPPED_FILE)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileInfo(_Frozen):
    """One file of a version.

    Attributes:
        sha256: hex digest of its bytes.
        size_bytes: its length.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class IndexInfo(_Frozen):
    """The FAISS index.

    Attributes:
        kind: `flat` is exact.
        parameters: what it was built with; empty for `flat`.
    """

    kind: Literal["flat"]
    parameters: dict[str, int | float | str] = {}


class Manifest(_Frozen):
    """All there is to know about one version before opening its files.

    Attributes:
        format_version: layout of the gallery; a reader refuses any other than its own.
        version: name of the version's folder; sorts by time.
        modality: what the items are.
        dim: width E of the vectors.
        count: number N of items.
        index: the FAISS index.
        model_fingerprint: hash of the weights, configuration and preprocessing that embedded it.
        model_name: short name of that model.
        created: ISO 8601 time, UTC.
        files: hash and size of each file beside the manifest.
        skipped: number of items left out, by reason; they are listed in `skipped.jsonl`.
        source: what was indexed: a folder, or shards separated by `, `.
    """

    format_version: int
    version: str
    modality: Literal["image", "video", "text"]
    dim: int = Field(gt=0)
    count: int = Field(gt=0)
    index: IndexInfo
    model_fingerprint: str
    model_name: str
    created: str
    files: dict[str, FileInfo]
    skipped: dict[str, int]
    source: str

    def to_bytes(self) -> bytes:
        """The bytes of `manifest.json`."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Check the bytes of a manifest.

    Raises:
        GalleryError: if it is damaged, or of another format version.
    """
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as err:
        fault = err.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise GalleryError(
            f"{path} is damaged ({where}: {fault['msg']}); build the gallery again"
        ) from err
    if manifest.format_version != FORMAT_VERSION:
        raise GalleryError(
            f"{path} has format version {manifest.format_version}; this program reads version "
            f"{FORMAT_VERSION}; build the gallery again or use the program that made it"
        )
    if set(manifest.files) != set(VERSION_FILES):
        raise GalleryError(f"{path} lists {sorted(manifest.files)}; expected {VERSION_FILES}")
    return manifest


def sha256_of(path: Path) -> FileInfo:
    """Hash a file. Raises OSError if it cannot be read."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return FileInfo(sha256=digest, size_bytes=handle.tell())


def check_file(path: Path, expected: FileInfo, *, checksum: bool = True) -> str | None:
    """Say what is wrong with a file, or `None` if it is as the manifest says."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes != expected.size_bytes:
            return f"it holds {size_bytes:,} bytes instead of {expected.size_bytes:,}"
        if checksum and sha256_of(path).sha256 != expected.sha256:
            return "its sha256 is not the manifest's"
    except OSError as err:
        return f"it cannot be read: {err.strerror}"
    return None
