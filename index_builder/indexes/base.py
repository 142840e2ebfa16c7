"""What every index can do, and what one is asked for when it is built.

An index proposes rows; scores are always computed again from the stored vectors (`exact_scores`),
so a score means the same in every kind, and only which rows are found can differ.

Shape letters: Q queries, M rows to choose from, W rows proposed, K results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from cots_model.errors import InputError
from index_builder.indexes.effort import Effort
from index_builder.manifest import VectorType
from index_builder.vectors import Rows, Vectors

IndexChoice = Literal["flat", "hnsw", "ivf", "ivfpq", "cagra", "auto"]
INDEX_CHOICES: tuple[IndexChoice, ...] = ("flat", "hnsw", "ivf", "ivfpq", "cagra", "auto")

OnBlock = Callable[[], object]
"""Called between the blocks of a long search; what it raises ends the search."""


def go_on() -> None:
    """Never end a search early."""


class SearchIndex(Protocol):
    """Inner-product search over all rows of a gallery; safe to use from several threads."""

    @property
    def exact(self) -> bool:
        """Whether it always finds the best rows."""
        ...

    def search(self, query_QE: Vectors, k: int) -> tuple[Vectors, Rows]:
        """The best rows of each query: scores `[Q,K]` float32 and rows `[Q,K]` int64.

        K is min(k, N) whatever the kind: an index that finds fewer looks further. Best first; equal
        scores by row.
        """
        ...

    def search_among(
        self, query_QE: Vectors, k: int, rows_M: Rows, on_block: OnBlock = ...
    ) -> tuple[Vectors, Rows]:
        """The best of some rows, exactly whatever the kind: scores `[Q,K]` and rows `[Q,K]`.

        K is min(k, M). Best first; equal scores by row.

        Args:
            query_QE: `[Q,E]` float32, finite.
            k: how many.
            rows_M: the rows to choose from, ascending, int64.
            on_block: called before each block of rows; what it raises ends the search.
        """
        ...


class Proposer(Protocol):
    """Finds rows that may be among the best; safe to use from several threads."""

    def propose(self, query_QE: Vectors, width: int, effort: Effort) -> tuple[Vectors, Rows]:
        """Rough scores and rows `[Q,W]` of each query, best first; row -1 where none was found."""
        ...


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """Which index to build.

    Attributes:
        kind: `auto` chooses by count, memory and device.
        target_recall: recall@10 beside exact search that search parameters are tuned to.
        vectors: how vectors are stored.
        device: `auto`, `cpu`, `cuda` or `cuda:N`: where the index is trained and built.
        reproducible: the same vectors give the same bytes. It costs time for `hnsw` alone, which
            is then built by one thread.
    """

    kind: IndexChoice = "flat"
    target_recall: float = 0.95
    vectors: VectorType = "float32"
    device: str = "auto"
    reproducible: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.kind not in INDEX_CHOICES:
            accepted = ", ".join(INDEX_CHOICES)
            raise InputError(f"unknown index {self.kind!r}; accepted: {accepted}")
        if not 0 < self.target_recall <= 1:
            raise InputError(f"target recall is {self.target_recall}; above 0, at most 1")
