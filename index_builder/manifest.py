"""The manifest of a gallery version: what it holds, which model made it, and every file's hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cots_model.errors import GalleryError

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.faiss"
VECTORS_FILE = "vectors.npy"
ITEMS_FILE = "items.parquet"
SKIPPED_FILE = "skipped.jsonl"
EXCLUDED_FILE = "excluded.jsonl"
FRAMES_FILE = "frames.npy"
FRAME_TIMES_FILE = "frame_times.npy"
PLACES_FILE = "places.npy"
METADATA_FILE = "metadata.parquet"

Modality = Literal["image", "video", "text"]
IndexKind = Literal["flat", "hnsw", "ivf", "ivfpq", "cagra", "milvus"]
JpegDecoder = Literal["cpu", "gpu"]
VectorType = Literal["float32", "float16", "int8"]
Parameter = bool | int | float | str
MODALITIES: tuple[Modality, ...] = ("image", "video", "text")

_ALWAYS = (ITEMS_FILE, SKIPPED_FILE, EXCLUDED_FILE)
_VIDEO = (FRAMES_FILE, FRAME_TIMES_FILE)
_MAY_LACK = {METADATA_FILE}  # of galleries exported before there were filters


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Version(BaseModel):
    format_version: int


class FileInfo(_Frozen):
    """One file of a version.

    Attributes:
        sha256: hex digest of its bytes.
        size_bytes: its length.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Measured(_Frozen):
    """How an index did at build time beside an exact search, on a sample of queries.

    Attributes:
        num_queries: how many queries were tried, one at a time.
        recall_at_10: share of the ten best that the index finds.
        latency_ms: median time of one query.
        exact_latency_ms: the same of the exact search.
        bytes: size of the index file.
    """

    num_queries: int = Field(ge=0)
    recall_at_10: float = Field(ge=0, le=1)
    latency_ms: float = Field(ge=0)
    exact_latency_ms: float = Field(ge=0)
    bytes: int = Field(ge=0)


class IndexInfo(_Frozen):
    """The search index.

    Attributes:
        kind: `flat` is exact; `milvus` keeps vectors and items in a Milvus collection.
        parameters: what it was built with; empty for `flat`.
        search: what it is searched with (`ef_search`, `num_probes`, `refine`, ...).
        reason: why this kind, in words, where `auto` chose it.
        measured: recall and latency at build time; `None` where nothing was measured.
    """

    kind: IndexKind
    parameters: dict[str, Parameter] = {}
    search: dict[str, Parameter] = {}
    reason: str = ""
    measured: Measured | None = None


class VectorsInfo(_Frozen):
    """How the vectors are stored.

    Attributes:
        type: of the numbers in `vectors.npy`.
        scale: stored number x scale = component of the unit vector; 1 but for int8.
    """

    type: VectorType = "float32"
    scale: float = Field(default=1.0, gt=0)


class Recipe(_Frozen):
    """What `update` needs to do the same again.

    Attributes:
        sources: SRC as given, made absolute.
        metadata: the metadata file, absolute, if there was one.
        index: the kind asked for, `auto` included.
        target_recall: recall@10 that approximate indexes are tuned to.
        vectors: how vectors are stored.
        batch_size: embedded at once.
        precision: of the computation.
        segment_seconds: length of the segments long videos are cut into, if they are.
        jpeg_decoder: where plain JPEGs were decoded.
        checkpoint: what the model was loaded from, where that is known.
    """

    sources: tuple[str, ...]
    metadata: str | None = None
    index: str = "flat"
    target_recall: float = 0.95
    vectors: VectorType = "float32"
    batch_size: int = 32
    precision: str = "float32"
    segment_seconds: float | None = None
    jpeg_decoder: JpegDecoder = "cpu"
    checkpoint: str | None = None


class ShardInfo(_Frozen):
    """Of a gallery that `--shard i/n` built: which shares of the whole it holds.

    Its vectors are float32 and its index is flat, whatever the recipe says, until all are merged.
    `places.npy` (int64) holds the place in the source of each row, then of each skipped line, so
    that the merged gallery is the one that a single build would have made.

    Attributes:
        of: how many shares there are.
        numbers: those held here.
        listing_sha256: hash of the ids in the order of the source, and of how they were cut: equal
            in all shards that fit together.
    """

    of: int = Field(gt=0)
    numbers: tuple[int, ...]
    listing_sha256: str


class Manifest(_Frozen):
    """All there is to know about one version before opening its files.

    Attributes:
        format_version: layout of the gallery; a reader refuses any other than its own.
        version: name of the version's folder; sorts by time.
        modality: what the items are.
        dim: width E of the vectors.
        count: number N of items; only a share of a gallery may have none.
        index: the search index.
        vectors: how vectors are stored.
        model_fingerprint: hash of the weights, configuration and preprocessing that embedded it.
        model_name: short name of that model.
        created: ISO 8601 time, UTC.
        files: hash and size of each file beside the manifest.
        skipped: number of items left out, by reason; they are listed in `skipped.jsonl`.
        source: what was indexed, for people.
        roots: absolute folders, files or urls that originals lie in; none is served from outside.
        recipe: how it was built.
        shard: which share of a gallery this is; `None` for a whole one.
    """

    format_version: int
    version: str
    modality: Modality
    dim: int = Field(gt=0)
    count: int = Field(ge=0)
    index: IndexInfo
    vectors: VectorsInfo = VectorsInfo()
    model_fingerprint: str
    model_name: str
    created: str
    files: dict[str, FileInfo]
    skipped: dict[str, int]
    source: str
    roots: tuple[str, ...]
    recipe: Recipe
    shard: ShardInfo | None = None

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        if not self.count and self.shard is None:
            raise ValueError("count is 0, and only a shard may be empty")
        return self

    def to_bytes(self) -> bytes:
        """The bytes of `manifest.json`."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def version_files(
    modality: Modality, kind: IndexKind, *, is_shard: bool = False
) -> tuple[str, ...]:
    """Names of the files that a version has beside its manifest."""
    if kind == "milvus":
        files: tuple[str, ...] = (METADATA_FILE, SKIPPED_FILE, EXCLUDED_FILE)
    else:
        files = (INDEX_FILE, VECTORS_FILE, *_ALWAYS)
    if modality == "video":
        files += _VIDEO
    return (*files, PLACES_FILE) if is_shard else files


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Check the bytes of a manifest.

    Raises:
        GalleryError: if it is damaged, or of another format version.
    """
    try:
        version = _Version.model_validate_json(data).format_version
        if version != FORMAT_VERSION:
            raise GalleryError(
                f"{path} has format version {version}; this program reads version "
                f"{FORMAT_VERSION}; build the gallery again or use the program that made it"
            )
        manifest = Manifest.model_validate_json(data)
    except ValidationError as err:
        fault = err.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise GalleryError(
            f"{path} is damaged ({where}: {fault['msg']}); build the gallery again"
        ) from err
    is_shard = manifest.shard is not None
    expected = version_files(manifest.modality, manifest.index.kind, is_shard=is_shard)
    if not set(manifest.files) ^ set(expected) <= _MAY_LACK & set(expected):
        raise GalleryError(f"{path} lists {sorted(manifest.files)}; expected {sorted(expected)}")
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
