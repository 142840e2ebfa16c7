"""What a collection holds: the one place that writes its rows and reads them.

    row        INT64, primary key: the row of our other indexes, so that ties by row are ties by id
    id         VARCHAR, the item's id
    id_sha256  VARCHAR, indexed: hex digest of the id. Items are found by it, so that no id ever
               becomes part of a filter expression
    item       ARRAY of VARCHAR: the whole item as ASCII JSON, cut into pieces that Milvus accepts
    vector     FLOAT_VECTOR, the unit vector

The collection's properties and its description name the fingerprint of its content, by which a
gallery knows it again, and the kind of its index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cots_model.errors import InputError
from index_builder.items import Item
from index_builder.manifest import Manifest
from index_builder.vectors import Vectors

LAYOUT = 1
LABEL = "cots.gallery"
MAX_BATCH_ROWS = 1000
MAX_BATCH_BYTES = 8 * 1024 * 1024
"""Of one write; Milvus takes 64 MB by default."""

MAX_TEXT_BYTES = 65_535
_PIECE = 60_000
_MAX_PIECES = 256
_DESCRIPTION = "COTS Retrieval gallery, {label}"

Row = dict[str, Any]


def fields(dim: int) -> list[dict[str, Any]]:
    """The fields, for `MilvusClient.create`."""
    return [
        {"name": "row", "type": "INT64", "is_primary": True},
        {"name": "id", "type": "VARCHAR", "max_length": MAX_TEXT_BYTES},
        {"name": "id_sha256", "type": "VARCHAR", "max_length": 64},
        {
            "name": "item",
            "type": "ARRAY",
            "element_type": "VARCHAR",
            "max_capacity": _MAX_PIECES,
            "max_length": MAX_TEXT_BYTES,
        },
        {"name": "vector", "type": "FLOAT_VECTOR", "dim": dim},
    ]


def label(fingerprint: str, index_type: str) -> str:
    """What a collection is known by."""
    return f"{fingerprint} {index_type}"


def properties(its_label: str) -> dict[str, str]:
    """The collection's properties."""
    return {LABEL: its_label}


def description(its_label: str) -> str:
    """The collection's description."""
    return _DESCRIPTION.format(label=its_label)


def label_of(found: Mapping[str, str]) -> str | None:
    """The label of a collection, from its properties or its description; None if not ours."""
    if LABEL in found:
        return found[LABEL]
    head = _DESCRIPTION.format(label="")
    text = found.get("description", "")
    return text.removeprefix(head) if text.startswith(head) else None


def to_row(row: int, item: Item, vector_E: Vectors) -> Row:
    """What Milvus keeps of an item.

    Raises:
        InputError: if its id or its metadata is longer than Milvus takes.
    """
    text = item_text(item)
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    id_bytes = item.id.encode()
    if len(id_bytes) > MAX_TEXT_BYTES or len(pieces) > _MAX_PIECES:
        raise InputError(
            f"item {item.id[:80]!r} has an id of {len(id_bytes):,} bytes and {len(text):,} bytes "
            f"in all; Milvus takes {MAX_TEXT_BYTES:,} and {_PIECE * _MAX_PIECES:,}; shorten its "
            "metadata and build the gallery again"
        )
    return {
        "row": row,
        "id": item.id,
        "id_sha256": id_digest(item.id),
        "item": pieces,
        "vector": vector_E,
    }


def item_of(found: Mapping[str, Any]) -> Item:
    """The item of a row that was read."""
    return Item(**json.loads("".join(found["item"])))


def item_text(item: Item) -> str:
    """An item as ASCII JSON, the same for equal items."""
    return json.dumps(asdict(item), sort_keys=True, separators=(",", ":"))


def id_digest(item_id: str) -> str:
    """What an item is found by."""
    return hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).hexdigest()


def row_bytes(row: Row) -> int:
    """About how many bytes a row takes on the way to the server."""
    return sum(map(len, row["item"])) + 4 * len(row["vector"]) + len(row["id"]) + 200


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in writes of bounded size, in order."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        more = row_bytes(row)
        if batch and (len(batch) == MAX_BATCH_ROWS or size + more > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += more
    if batch:
        yield batch


class ContentDigest:
    """The fingerprint of a collection's content: of the model, and of every row in order."""

    def __init__(self, manifest: Manifest) -> None:
        head = (LAYOUT, manifest.modality, manifest.model_fingerprint, manifest.dim, manifest.count)
        self._digest = hashlib.sha256(json.dumps(head).encode())

    def add(self, items: Sequence[Item], vectors_nE: Vectors) -> None:
        """Add the next rows: items and vectors `[n,E]`."""
        little = np.ascontiguousarray(vectors_nE, dtype="<f4")
        for item, vector_E in zip(items, little, strict=True):
            self._digest.update(item_text(item).encode())
            self._digest.update(vector_E.tobytes())

    def hexdigest(self) -> str:
        """The fingerprint, if all rows have been added."""
        return self._digest.hexdigest()
