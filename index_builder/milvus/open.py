"""Opening what `export` wrote: the parts of a gallery, checked against its manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cots_model.errors import GalleryError
from index_builder.manifest import METADATA_FILE, Manifest
from index_builder.milvus.address import Address, parse_address
from index_builder.milvus.client import MilvusClient, MilvusError, connect
from index_builder.milvus.collection import ContentDigest, label, label_of
from index_builder.milvus.index import MilvusIndex
from index_builder.milvus.metadata import read_metadata
from index_builder.milvus.rows import MilvusItems, MilvusVectors

_BLOCK = 1024
_PARAMETERS = {"uri", "collection", "fingerprint", "index_type", "max_norm"}


@dataclass(frozen=True)
class Opened:
    """The parts of a gallery whose vectors and items are in Milvus.

    Attributes:
        index: finds rows.
        vectors: the unit vectors, by row.
        items: the items, by row and id.
    """

    index: MilvusIndex
    vectors: MilvusVectors
    items: MilvusItems


def open_collection(manifest: Manifest, folder: Path | None = None) -> Opened:
    """Open the collection that a manifest names.

    Args:
        manifest: of the exported gallery.
        folder: of its version, with the metadata by column; without it there are no filters.

    Raises:
        GalleryError: if the manifest does not say where it is, or the metadata are damaged.
        MilvusError: if the client library is missing, the server does not answer, or the
            collection is gone or is not the one that was exported (both fingerprints named).
    """
    client = check_collection(manifest)
    parameters = manifest.index.parameters
    client.load()
    check_count(client, manifest.count)
    vectors = MilvusVectors(client, (manifest.count, manifest.dim))
    index = MilvusIndex(
        client,
        vectors,
        exact=parameters["index_type"] == "FLAT",
        max_norm=float(parameters["max_norm"]),
        search=manifest.index.search,
        num_lists=int(parameters.get("nlist", 0)),
    )
    columns = None
    if folder is not None and METADATA_FILE in manifest.files:
        columns = read_metadata(folder / METADATA_FILE, manifest.count)
    return Opened(index, vectors, MilvusItems(client, manifest.count, columns))


def check_collection(manifest: Manifest) -> MilvusClient:
    """See whether the collection that a manifest names is there and is the one exported.

    Nothing is loaded; the client is connected to it.

    Raises:
        GalleryError: if the manifest does not say where it is.
        MilvusError: as `open_collection`.
    """
    parameters = manifest.index.parameters
    missing = _PARAMETERS - parameters.keys()
    if missing:
        raise GalleryError(f"the manifest lacks {', '.join(sorted(missing))}; export again")
    client = connect(collection_address(manifest))
    check_label(client, label(str(parameters["fingerprint"]), str(parameters["index_type"])))
    return client


def collection_address(manifest: Manifest) -> Address:
    """Where the vectors and items of a gallery are."""
    parameters = manifest.index.parameters
    return parse_address(f"{parameters['uri']}/{parameters['collection']}")


def check_label(client: MilvusClient, expected: str) -> None:
    """Check that the collection is there and is the right one; raises MilvusError."""
    found = client.properties()
    if found is None:
        raise MilvusError(
            f"there is no collection {client.address.collection} at {client.address.uri}; "
            "export the gallery again"
        )
    theirs = label_of(found)
    if theirs != expected:
        raise MilvusError(
            f"collection {client.address} holds {theirs or 'nothing of ours'} (fingerprint of the "
            f"content, index), but the gallery was exported as {expected}; export it again, or to "
            "another collection"
        )


def check_count(client: MilvusClient, expected: int) -> None:
    """Check the number of rows; raises MilvusError."""
    count = client.count()
    if count != expected:
        raise MilvusError(
            f"collection {client.address} holds {count:,} rows, but the gallery counts "
            f"{expected:,}; export it again with --replace"
        )


def content_fingerprint(
    opened: Opened, manifest: Manifest, progress: Callable[[int], object] = lambda _: None
) -> str:
    """The fingerprint of what the collection holds now, every row read back; raises MilvusError."""
    digest = ContentDigest(manifest)
    start = 0
    for block_nE in opened.vectors.blocks(_BLOCK):
        rows = range(start, start + len(block_nE))
        digest.add(opened.items.items(rows), block_nE)
        start += len(block_nE)
        progress(len(block_nE))
    return digest.hexdigest()
