"""The vectors that a gallery is searched for, checked in one place.

Shape letters: Q queries, E dimensions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cots_model.errors import InputError
from index_builder.vectors import Vectors


def checked_queries(query_QE: npt.ArrayLike, dim: int) -> Vectors:
    """Queries as a contiguous array `[Q,E]` of finite float32 numbers, copied if they were not.

    Args:
        query_QE: from the caller of a search.
        dim: of the vectors that are searched.

    Raises:
        InputError: if the queries are of another shape, or a number is NaN or infinite.
    """
    checked_QE = np.ascontiguousarray(query_QE, dtype=np.float32)
    if checked_QE.ndim != 2 or checked_QE.shape[1] != dim:
        raise InputError(f"queries have shape {checked_QE.shape}; [Q, {dim}] is accepted here")
    if not np.isfinite(checked_QE).all():
        raise InputError("a query holds NaN or infinity; only finite numbers are accepted")
    return checked_QE
