"""Searching a collection with the scores and the order of our other indexes.

Milvus decides which rows can be among the best; their scores are computed again from the vectors
it returns with them. With a FLAT index the result is that of the exact FAISS index, bit for bit.

Shape letters: Q queries, M rows to choose from, W candidates, K results, E dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cots_model.errors import InputError
from index_builder.indexes.among import choose_ranked, first_width, scan_rows
from index_builder.indexes.base import OnBlock, go_on
from index_builder.indexes.scores import exact_scores
from index_builder.milvus.client import MilvusClient, MilvusError
from index_builder.milvus.rows import MAX_ANSWER_BYTES, MilvusVectors
from index_builder.vectors import Rows, Vectors

MAX_WIDTH = 16_384
"""Milvus's own limit of results per query."""

MAX_SCAN_ROWS = 1_000_000
"""Largest collection that is read whole for more results than `MAX_WIDTH`."""

_MARGIN = 32
_FEW_ROWS = 8192  # read in one page or a few
_SCAN_BLOCK = 8192


class MilvusIndex:
    """Inner-product search over a collection; safe to use from several threads."""

    def __init__(
        self,
        client: MilvusClient,
        vectors: MilvusVectors,
        *,
        exact: bool,
        max_norm: float,
        search: Mapping[str, Any],
        num_lists: int = 0,
    ) -> None:
        """Search the collection of `client`.

        Args:
            client: the connection.
            vectors: the collection's vectors.
            exact: whether its index is FLAT.
            max_norm: length of the longest vector.
            search: Milvus's search parameters (`ef`, `nprobe`).
            num_lists: lists of an IVF index: the most that can be probed.
        """
        self._client = client
        self._vectors = vectors
        self._exact = exact
        self._max_norm = max_norm
        self._search = dict(search)
        self._num_lists = num_lists
        num_rows, dim = vectors.shape
        self._max_width = min(MAX_WIDTH, num_rows, max(1, 4 * MAX_ANSWER_BYTES // (4 * dim)))

    @property
    def exact(self) -> bool:
        """Whether it always finds the best rows."""
        return self._exact

    def search(self, query_QE: Vectors, k: int) -> tuple[Vectors, Rows]:
        """The best rows of each query: scores `[Q,K]` float32 and rows `[Q,K]` int64.

        K is min(k, N). Best first; equal scores by row, also across the k-th place.

        Raises:
            InputError: if k is over Milvus's limit and the collection too large to be read whole.
            MilvusError: if the server does not answer in time.
        """
        num_rows = self._vectors.shape[0]
        k = min(k, num_rows)
        scores_QK = np.empty((len(query_QE), k), np.float32)
        rows_QK = np.empty((len(query_QE), k), np.int64)
        pending = list(range(len(query_QE)))
        width = min(k + _MARGIN, self._max_width) if k <= self._max_width else 0
        while pending and width:
            unsettled = []
            for query, (scores_W, rows_W, settled) in self._candidates(query_QE, pending, width, k):
                if len(rows_W) >= k:
                    scores_QK[query], rows_QK[query] = scores_W[:k], rows_W[:k]
                if not settled:
                    unsettled.append((query, len(rows_W) >= k))
            last = width == self._max_width
            if last and num_rows > MAX_SCAN_ROWS:  # more ties than Milvus gives: any of them do
                unsettled = [(query, filled) for query, filled in unsettled if not filled]
            pending = [query for query, _ in unsettled]
            width = 0 if last else min(width * 4, self._max_width)
        for query in pending:
            scores_QK[query], rows_QK[query] = self._scan(query_QE[query], k)
        return scores_QK, rows_QK

    def search_among(
        self, query_QE: Vectors, k: int, rows_M: Rows, on_block: OnBlock = go_on
    ) -> tuple[Vectors, Rows]:
        """The best of some rows, exactly whatever the index; see `SearchIndex.search_among`.

        Few rows are read and scored here. Of many, those in the ranking of a FLAT index are taken,
        as long as Milvus gives one that is long enough.

        Raises:
            InputError: if that is not enough, and there are too many rows to be read.
            MilvusError: if the server does not answer in time.
        """
        num_rows = self._vectors.shape[0]
        k = min(k, len(rows_M))
        widths = []
        if self._exact and len(rows_M) > _FEW_ROWS:
            width = first_width(k, num_rows, len(rows_M))
            while width <= self._max_width:
                widths.append(width)
                width *= 4

        def search(some_QE: Vectors, width: int) -> tuple[Vectors, Rows]:
            on_block()
            return self.search(some_QE, width)

        def scan(some_QE: Vectors) -> tuple[Vectors, Rows]:
            if len(rows_M) > MAX_SCAN_ROWS:
                raise InputError(
                    f"the filter leaves {len(rows_M):,} items of a gallery in Milvus, and the best "
                    f"of them are not among its first {self._max_width:,}; at most "
                    f"{MAX_SCAN_ROWS:,} can be read; narrow the filter"
                )
            return scan_rows(self._vectors, some_QE, k, rows_M, on_block)

        return choose_ranked(search, widths, query_QE, k, rows_M, num_rows, scan)

    def _candidates(
        self, query_QE: Vectors, pending: Sequence[int], width: int, k: int
    ) -> list[tuple[int, tuple[Vectors, Rows, bool]]]:
        """For each query its candidates, ranked, and whether the first k of them are final."""
        parameters = dict(self._search)
        if "ef" in parameters:
            parameters["ef"] = max(int(parameters["ef"]), width)
        if "nprobe" in parameters and width > k + _MARGIN:  # the first probes did not find enough
            probes = int(parameters["nprobe"]) * width // (k + _MARGIN)
            parameters["nprobe"] = min(probes, self._num_lists)
        at_once = max(1, MAX_ANSWER_BYTES // (width * 4 * self._vectors.shape[1]))
        found = []
        for start in range(0, len(pending), at_once):
            chunk = pending[start : start + at_once]
            answer = self._client.search(query_QE[chunk], width, ["vector"], parameters)
            for query, hits in zip(chunk, answer, strict=True):
                found.append((query, self._rank(query_QE[query], hits, width, k)))
        return found

    def _rank(
        self, query_E: Vectors, hits: list[dict[str, Any]], width: int, k: int
    ) -> tuple[Vectors, Rows, bool]:
        num_rows = self._vectors.shape[0]
        if self._exact and len(hits) < width:
            raise MilvusError(
                f"Milvus at {self._client.address} found {len(hits):,} rows where there must be "
                f"{width:,}; the collection was changed; export the gallery again with --replace"
            )
        if not hits:
            return np.empty(0, np.float32), np.empty(0, np.int64), False
        rows_W = np.array([hit["row"] for hit in hits], np.int64)
        vectors_WE = np.array([hit["vector"] for hit in hits], np.float32)
        scores_W, rows_W = _ranked(exact_scores(query_E, vectors_WE), rows_W)
        if len(hits) < k:
            return scores_W, rows_W, False
        worst = float(hits[-1]["distance"])
        could_tie = worst + self._rounding(query_E) >= scores_W[k - 1]
        return scores_W, rows_W, width == num_rows or not self._exact or not could_tie

    def _rounding(self, query_E: Vectors) -> float:
        """Bound on the error of a float32 sum of E products (Higham 2002, eq. 3.5)."""
        unit_roundoff = float(np.finfo(np.float32).eps) / 2
        return 2 * len(query_E) * unit_roundoff * float(np.linalg.norm(query_E)) * self._max_norm

    def _scan(self, query_E: Vectors, k: int) -> tuple[Vectors, Rows]:
        """All vectors read and scored here: slow, and right for any k."""
        num_rows = self._vectors.shape[0]
        if num_rows > MAX_SCAN_ROWS:
            raise InputError(
                f"k is {k:,}; Milvus gives at most {self._max_width:,} results of a collection of "
                f"more than {MAX_SCAN_ROWS:,} items; ask for fewer"
            )
        scores_W, rows_W = np.empty(0, np.float32), np.empty(0, np.int64)
        start = 0
        for block_nE in self._vectors.blocks(_SCAN_BLOCK):
            new_W = np.arange(start, start + len(block_nE), dtype=np.int64)
            scores_W = np.concatenate([scores_W, exact_scores(query_E, block_nE)])
            scores_W, rows_W = _ranked(scores_W, np.concatenate([rows_W, new_W]))
            scores_W, rows_W = scores_W[:k], rows_W[:k]
            start += len(block_nE)
        return scores_W, rows_W


def _ranked(scores_W: Vectors, rows_W: Rows) -> tuple[Vectors, Rows]:
    order = np.lexsort((rows_W, -scores_W))
    return scores_W[order], rows_W[order]
