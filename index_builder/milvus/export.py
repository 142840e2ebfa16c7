"""A local gallery becomes a Milvus collection, and a small gallery that names it.

    export_gallery(ExportOptions(gallery=Path("photos"), to="milvus://host/photos",
                                 target=Path("photos-milvus")))

The same command continues an export that was killed: batches that are whole in the collection stay,
the others are written again under the same primary keys. At the end every row is read back and its
digest compared with the local one; only then is the gallery published.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import numpy as np

from cots_model.errors import CotsError, InputError
from index_builder.gallery import Gallery
from index_builder.indexes.measure import make_sample, measure
from index_builder.items import Item
from index_builder.lock import builder_lock
from index_builder.manifest import (
    ITEMS_FILE,
    MANIFEST_FILE,
    METADATA_FILE,
    IndexInfo,
    Manifest,
    Parameter,
    VectorsInfo,
    sha256_of,
    version_files,
)
from index_builder.milvus import collection
from index_builder.milvus.address import Address, parse_address
from index_builder.milvus.client import MilvusClient, MilvusError, connect
from index_builder.milvus.metadata import write_metadata
from index_builder.milvus.open import Opened, content_fingerprint, open_collection
from index_builder.milvus.options import ExportOptions, ExportReport
from index_builder.publish import (
    Pointer,
    new_version_name,
    prune,
    publish,
    start_partial,
    version_folder,
)
from index_builder.vectors import Vectors

_BLOCK = 1024
_QUERIES = 200
Progress = Callable[[int], object]


def export_gallery(options: ExportOptions, *, progress: Progress = lambda _: None) -> ExportReport:
    """Write a gallery to Milvus and publish a gallery that reads from there.

    Args:
        options: what to export.
        progress: called with the rows dealt with since the last call; each counts three times:
            hashed, written, and read back.

    Raises:
        InputError: if the url or the gallery is no use, or an item is too large for Milvus.
        MilvusError: if the server fails, or the collection belongs to something else.
        GalleryBusyError: if another process writes the target.
        CotsError: if a file cannot be written.
    """
    start_s = time.perf_counter()
    address = parse_address(options.to)
    gallery = Gallery.open(options.gallery)
    if gallery.manifest.index.kind == "milvus":
        raise InputError(f"{options.gallery} is in Milvus already; export the local gallery")
    shard = gallery.manifest.shard
    if shard is not None:
        raise InputError(
            f"{options.gallery} holds shards {list(shard.numbers)} of {shard.of}; merge all of "
            "them with `cots index merge` and export that"
        )
    client = connect(address)
    try:
        with builder_lock(options.target):
            export = _Export(options, address, gallery, client, progress)
            version, written = export.run()
    except OSError as err:
        raise CotsError(
            f"{options.target} could not be written ({err}); check the disk and its permissions"
        ) from err
    finally:
        client.close()
    seconds = round(time.perf_counter() - start_s, 3)
    return ExportReport(
        gallery=str(options.target),
        version=version,
        collection=str(address),
        count=len(gallery),
        written=written,
        fingerprint=export.fingerprint,
        seconds=seconds,
    )


class _Export:
    """One export under way."""

    def __init__(
        self,
        options: ExportOptions,
        address: Address,
        gallery: Gallery,
        client: MilvusClient,
        progress: Progress,
    ) -> None:
        self._options = options
        self._address = address
        self._gallery = gallery
        self._client = client
        self._progress = progress
        self.fingerprint = ""
        self._max_norm = 0.0

    def run(self) -> tuple[str, int]:
        """Write, check and publish; the version's name and the rows written."""
        self._measure()
        index = self._index_info()
        resumed = self._open_or_create(index)
        written = self._write(resumed=resumed)
        self._client.flush()
        manifest = self._manifest(index)
        opened = open_collection(manifest)
        self._verify(opened, manifest)
        return self._publish(self._measured(opened, manifest)), written

    def _measure(self) -> None:
        """The fingerprint of the local content, and the length of its longest vector."""
        digest = collection.ContentDigest(self._gallery.manifest)
        for _, items, block_nE in self._blocks():
            digest.add(items, block_nE)
            self._max_norm = max(self._max_norm, float(np.linalg.norm(block_nE, axis=1).max()))
            self._progress(len(items))
        self.fingerprint = digest.hexdigest()

    def _open_or_create(self, index: IndexInfo) -> bool:
        """Make the collection ready for writing; whether some of it may be there already."""
        label = collection.label(self.fingerprint, str(index.parameters["index_type"]))
        found = self._client.properties()
        there = found is not None and collection.label_of(found) == label
        if found is not None and not there and not self._options.replace:
            theirs = collection.label_of(found)
            what = f"holds {theirs}" if theirs else "was not made by `cots index export`"
            raise MilvusError(
                f"collection {self._address} exists and {what}; this export is {label} "
                "(fingerprint of the content, index); name another collection, or drop that one "
                "with --replace"
            )
        if found is not None and self._options.replace:
            self._client.drop()
            there = False
        if not there:
            dim = self._gallery.manifest.dim
            properties, description = collection.properties(label), collection.description(label)
            self._client.create(collection.fields(dim), properties, description)
        self._client.create_indexes(_indexes(index))
        return there

    def _write(self, *, resumed: bool) -> int:
        if resumed:  # only rows that are loaded can be counted
            self._client.load()
        written = 0
        for batch in collection.batches(self._rows()):
            if not (resumed and self._is_there(batch)):
                self._client.upsert(batch)
                written += len(batch)
            self._progress(len(batch))
        return written

    def _is_there(self, batch: list[collection.Row]) -> bool:
        first, last = batch[0]["row"], batch[-1]["row"]
        return self._client.count(f"row >= {first} and row <= {last}") == len(batch)

    def _rows(self) -> Iterator[collection.Row]:
        for start, items, block_nE in self._blocks():
            for place, (item, vector_E) in enumerate(zip(items, block_nE, strict=True)):
                yield collection.to_row(start + place, item, vector_E)

    def _blocks(self) -> Iterator[tuple[int, list[Item], Vectors]]:
        start = 0
        for block_nE in self._gallery.vectors.blocks(_BLOCK):
            rows = range(start, start + len(block_nE))
            yield start, self._gallery.items(rows), block_nE
            start += len(block_nE)

    def _index_info(self) -> IndexInfo:
        parameters: dict[str, Parameter] = {
            "uri": self._address.uri,
            "collection": self._address.collection,
            "fingerprint": self.fingerprint,
            "max_norm": self._max_norm,
            "index_type": self._options.index.upper(),
        }
        search: dict[str, Parameter] = {}
        if self._options.index == "hnsw":
            parameters |= {"M": 32, "efConstruction": 360}
            search = {"ef": 256}
        elif self._options.index == "ivf_flat":
            lists = max(1, min(65_536, 4 * math.isqrt(len(self._gallery))))
            parameters |= {"nlist": lists}
            search = {"nprobe": max(1, lists // 16)}
        return IndexInfo(kind="milvus", parameters=parameters, search=search)

    def _manifest(self, index: IndexInfo) -> Manifest:
        source = self._gallery.manifest
        return source.model_copy(
            update={
                "version": new_version_name(self._options.target),
                "index": index,
                "vectors": VectorsInfo(),  # Milvus holds float32
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )

    def _verify(self, opened: Opened, manifest: Manifest) -> None:
        """Read everything back; raises MilvusError if it is not what was written."""
        found = content_fingerprint(opened, manifest, self._progress)
        if found != self.fingerprint:
            raise MilvusError(
                f"collection {self._address} holds {found} after writing, not {self.fingerprint}; "
                "export again with --replace"
            )

    def _measured(self, opened: Opened, manifest: Manifest) -> Manifest:
        """The manifest, with the recall of an approximate index beside exact search."""
        if opened.index.exact:
            return manifest
        vectors = self._gallery.vectors
        sample = make_sample(vectors, most=_QUERIES)
        measured = measure(opened.index, vectors, sample, 0)  # Milvus does not tell its size
        index = manifest.index.model_copy(update={"measured": measured})
        return manifest.model_copy(update={"index": index})

    def _publish(self, manifest: Manifest) -> str:
        target = self._options.target
        source = version_folder(self._options.gallery, self._gallery.version)
        folder = start_partial(target, manifest.version)
        names = version_files(manifest.modality, "milvus")
        for name in names:
            if name == METADATA_FILE:
                write_metadata(source / ITEMS_FILE, folder / name)
            else:
                shutil.copyfile(source / name, folder / name)
        files = {name: sha256_of(folder / name) for name in names}
        data = manifest.model_copy(update={"files": files}).to_bytes()
        (folder / MANIFEST_FILE).write_bytes(data)
        publish(target, folder, Pointer(manifest.version, hashlib.sha256(data).hexdigest()))
        prune(target, keep=self._options.keep_versions)
        return manifest.version


def _indexes(index: IndexInfo) -> list[dict[str, object]]:
    build: dict[str, object] = {
        key: value
        for key, value in index.parameters.items()
        if key in ("M", "efConstruction", "nlist")
    }
    kind = index.parameters["index_type"]
    vector: dict[str, object] = {
        "field_name": "vector",
        "index_type": kind,
        "metric_type": "IP",
        "params": build,
    }
    return [vector, {"field_name": "id_sha256", "index_type": "INVERTED"}]
