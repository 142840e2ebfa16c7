"""The cells of a column of metadata: values of one type, and the rows that they are in.

Shape letters: N rows, C cells, n rows that have a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from index_builder.vectors import Rows

Mask = npt.NDArray[np.bool_]
Kind = Literal["whole", "real", "text", "boolean"]

TYPES: Mapping[Kind, pa.DataType] = {
    "whole": pa.int64(),
    "real": pa.float64(),
    "text": pa.string(),
    "boolean": pa.bool_(),
}
KINDS: Mapping[pa.DataType, Kind] = {type_: kind for kind, type_ in TYPES.items()}


@dataclass(frozen=True)
class Cells:
    """Values of one type, and the rows that they are in.

    Attributes:
        kind: their type.
        values: `[C]`; without `rows`, null where a row has none.
        rows: `[C]`, a row several times if it is of a list; `None` where each row has its place.
    """

    kind: Kind
    values: pa.ChunkedArray
    rows: Rows | None = None


@dataclass(frozen=True)
class Column:
    """One column, or one field of its objects.

    Attributes:
        cells: values, by type.
        elements: of the lists in it, by type.
        rows_n: that have any value, a list or an object included; `None` where each row has its
            place in the cells.
    """

    cells: tuple[Cells, ...]
    elements: tuple[Cells, ...]
    rows_n: Rows | None = None

    def present_N(self, num_rows: int) -> Mask:
        """Which rows have any value."""
        mask_N: Mask
        if self.rows_n is None:
            [cells] = self.cells
            mask_N = pc.is_valid(cells.values).to_numpy()
        else:
            mask_N = np.zeros(num_rows, bool)
            mask_N[self.rows_n] = True
        return mask_N
