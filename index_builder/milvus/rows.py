"""Vectors and items of a collection, by row, as local galleries give them from their files.

Shape letters: N rows, n some of them, E dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from index_builder.items import Item, MetadataColumn
from index_builder.milvus.client import MilvusClient, MilvusError
from index_builder.milvus.collection import id_digest, item_of
from index_builder.vectors import BLOCK, Rows, Vectors

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Of the vectors in one answer; servers send at most 100 MB."""

_MAX_PAGE = 8192
_ITEMS_PAGE = 256


class MilvusVectors:
    """Unit vectors by row; safe to use from several threads."""

    def __init__(self, client: MilvusClient, shape: tuple[int, int]) -> None:
        """Read from the collection of `client`, which holds rows 0 to N - 1."""
        self._client = client
        self._shape = shape
        self._page = max(1, min(_MAX_PAGE, MAX_ANSWER_BYTES // (4 * shape[1])))

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, E)`."""
        return self._shape

    def rows(self, rows_n: Rows) -> Vectors:
        """The vectors `[n,E]` of some rows, float32.

        Raises:
            MilvusError: if the server does not answer, or lacks one of them.
        """
        wanted, place_n = np.unique(np.asarray(rows_n, np.int64), return_inverse=True)
        unique = np.empty((len(wanted), self._shape[1]), np.float32)
        for start in range(0, len(wanted), self._page):
            page = wanted[start : start + self._page]
            found = fetch(self._client, _in(page), ["vector"], page.tolist())
            unique[start : start + len(page)] = [row["vector"] for row in found]
        vectors_nE: Vectors = unique[place_n]
        return vectors_nE

    def blocks(self, size: int = BLOCK) -> Iterator[Vectors]:
        """All vectors in order, `[n,E]` float32 at a time; raises as `rows`."""
        num_rows, dim = self._shape
        for start in range(0, num_rows, size):
            block_nE = np.empty((min(size, num_rows - start), dim), np.float32)
            for first, last in _spans(start, start + len(block_nE), self._page):
                found = fetch(self._client, _between(first, last), ["vector"], range(first, last))
                block_nE[first - start : last - start] = [row["vector"] for row in found]
            yield block_nE


class MilvusItems:
    """Items by row and by id; safe to use from several threads."""

    def __init__(
        self, client: MilvusClient, count: int, columns: list[MetadataColumn] | None = None
    ) -> None:
        """Read from the collection of `client`, which holds `count` rows.

        Args:
            client: the connection.
            count: how many rows the collection holds.
            columns: the metadata by column, which is kept outside; `None` if it is not.
        """
        self._client = client
        self._count = count
        self._columns = columns

    def __len__(self) -> int:
        return self._count

    def item(self, row: int) -> Item:
        """The item of a row."""
        [item] = self.items([row])
        return item

    def items(self, rows: Sequence[int]) -> list[Item]:
        """The items of some rows, in that order.

        Raises:
            MilvusError: if the server does not answer, or lacks one of them.
        """
        wanted = sorted(set(map(int, rows)))
        held: dict[int, Item] = {}
        for start in range(0, len(wanted), _ITEMS_PAGE):
            page = wanted[start : start + _ITEMS_PAGE]
            for found in fetch(self._client, _in(page), ["item"], page):
                held[int(found["row"])] = item_of(found)
        return [held[int(row)] for row in rows]

    def find(self, item_id: str) -> int | None:
        """Row of an id, or None; the id itself is in no filter expression, its digest is."""
        found = self._client.query(f'id_sha256 == "{id_digest(item_id)}"', ["row", "id"])
        return next((int(row["row"]) for row in found if row["id"] == item_id), None)

    def ids(self) -> list[str]:
        """All ids, in row order."""
        return [
            str(found["id"])
            for first, last in _spans(0, self._count, 2048)
            for found in fetch(self._client, _between(first, last), ["id"], range(first, last))
        ]

    def metadata_columns(self) -> list[MetadataColumn] | None:
        """The metadata of all items, by column; `None` if it was not exported."""
        return self._columns


def fetch(
    client: MilvusClient, where: str, fields: list[str], expected: Sequence[int]
) -> list[dict[str, Any]]:
    """The rows that meet a condition, by row; they must be the expected ones, in order.

    Raises:
        MilvusError: if they are not.
    """
    found = sorted(client.query(where, ["row", *fields]), key=lambda row: int(row["row"]))
    if [int(row["row"]) for row in found] != list(expected):
        raise MilvusError(
            f"Milvus at {client.address} gave {len(found):,} of {len(expected):,} rows asked for; "
            "the collection was changed; export the gallery again with --replace"
        )
    return found


def _in(rows: Sequence[int] | Rows) -> str:
    return f"row in [{', '.join(str(int(row)) for row in rows)}]"


def _between(first: int, last: int) -> str:
    return f"row >= {first} and row < {last}"


def _spans(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)
