"""A FAISS index in main memory as a proposer.

Shape letters: Q queries, E dimensions, W rows proposed.
"""

from __future__ import annotations

from typing import Any

import faiss

from index_builder.indexes.effort import Effort
from index_builder.indexes.threads import at_most, product_threads
from index_builder.vectors import Rows, Vectors

_faiss: Any = faiss  # its types know half of what is used here


class CpuProposer:
    """Passes the effort along with every search; the index itself is never changed."""

    def __init__(self, index: faiss.Index) -> None:
        """Hold an index."""
        self._index: Any = index

    def propose(self, query_QE: Vectors, width: int, effort: Effort) -> tuple[Vectors, Rows]:
        """Rough scores and rows `[Q,W]` of each query, best first; row -1 where none was found."""
        flat = isinstance(self._index, faiss.IndexFlat)
        with product_threads(*query_QE.shape) if flat else at_most(len(query_QE)):
            found: tuple[Vectors, Rows] = self._index.search(
                query_QE, width, params=self._parameters(effort, width)
            )
        return found

    def _parameters(self, effort: Effort, width: int) -> Any:
        if isinstance(self._index, faiss.IndexHNSW):
            return _faiss.SearchParametersHNSW(efSearch=max(effort.ef_search, width))
        if isinstance(self._index, faiss.IndexIVF):
            return _faiss.SearchParametersIVF(nprobe=min(effort.num_probes, self._index.nlist))
        return None
