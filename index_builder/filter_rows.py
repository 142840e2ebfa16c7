"""Which rows of an opened version meet a filter: masks over whole columns, the latest of them kept.

Every test is true or false of every row: it is false where the value is missing or of another type,
and its negation is true there.

Shape letters: N rows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from cots_model.errors import InputError
from index_builder.filter import AllOf, AnyOf, Condition, Filter, FilterError, Node, Not
from index_builder.filter_cells import Mask
from index_builder.filter_columns import MetadataColumns
from index_builder.filter_tests import check_types, find_cells
from index_builder.indexes.base import OnBlock, go_on
from index_builder.items import ItemRows
from index_builder.vectors import Rows

KEPT_BYTES = 64 * 1024 * 1024
"""Of the masks kept for filters that come again."""

_MOST_KEPT = 256
_NAMES_TOLD = 20


class RowFilters:
    """Finds the rows that meet a filter; safe to use from several threads."""

    def __init__(self, items: ItemRows) -> None:
        """Look at the metadata of these items."""
        columns = items.metadata_columns()
        self._num_rows = len(items)
        self._columns = None if columns is None else MetadataColumns(columns, self._num_rows)
        self._capacity = min(_MOST_KEPT, max(1, KEPT_BYTES // max(1, self._num_rows)))
        self._kept: OrderedDict[str, Mask] = OrderedDict()
        self._lock = threading.Lock()

    def decode(self, between: OnBlock = go_on) -> None:
        """Decode all columns of JSON now, which else the first filter that names one does.

        Args:
            between: called again and again meanwhile, to let other threads run.

        Raises:
            GalleryError: naming a column that holds what is no JSON.
        """
        if self._columns is not None:
            self._columns.decode(between)

    def rows(self, where: Filter, on_block: OnBlock = go_on) -> Rows:
        """The rows that meet a filter, ascending, int64.

        Args:
            where: the filter.
            on_block: called before every condition; what it raises ends the work.

        Raises:
            FilterError: if a column does not exist, or holds no values of that type.
            InputError: if the gallery's metadata is not at hand.
        """
        return np.flatnonzero(self._mask(where, on_block)).astype(np.int64, copy=False)

    def _mask(self, where: Filter, on_block: OnBlock) -> Mask:
        with self._lock:
            if where.key in self._kept:
                self._kept.move_to_end(where.key)
                return self._kept[where.key]
        if self._columns is None:
            raise InputError(
                "this gallery was exported without its metadata columns and cannot be filtered; "
                "export it again with `cots index export`"
            )
        mask_N = _Evaluation(self._columns, self._num_rows, on_block).of(where.root)
        mask_N.flags.writeable = False
        with self._lock:
            self._kept[where.key] = mask_N
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return mask_N


class _Evaluation:
    """One walk over a filter."""

    def __init__(self, columns: MetadataColumns, num_rows: int, on_block: OnBlock) -> None:
        self._columns = columns
        self._num_rows = num_rows
        self._on_block = on_block

    def of(self, node: Node) -> Mask:
        """A new mask; all parts are looked at, so that a fault is told whatever the others say."""
        match node:
            case AllOf(parts):
                return self._joined(np.logical_and, parts)
            case AnyOf(parts):
                return self._joined(np.logical_or, parts)
            case Not(part):
                mask_N: Mask = np.logical_not(self.of(part))
                return mask_N
            case Condition():
                self._on_block()
                return self._test(node)

    def _joined(self, join: np.ufunc, parts: Sequence[Node]) -> Mask:
        mask_N = np.full(self._num_rows, join is np.logical_and)
        for part in parts:
            join(mask_N, self.of(part), out=mask_N)
        return mask_N

    def _test(self, condition: Condition) -> Mask:
        column = self._columns.find(condition.column, self._on_block)
        if column is None:
            raise FilterError(condition.place, self._unknown(condition.column))
        if condition.test == "exists":
            present_N: Mask = column.present_N(self._num_rows) == condition.values[0]
            return present_N
        check_types(condition, column)
        mask_N = np.zeros(self._num_rows, bool)
        for cells, found_C in find_cells(condition, column):
            if cells.rows is None:
                mask_N |= found_C
            else:
                mask_N[cells.rows[found_C]] = True
        return mask_N

    def _unknown(self, name: str) -> str:
        names = sorted(self._columns.names())
        if not names:
            return "names a column, and the items of this gallery have no metadata"
        shown = ", ".join(map(repr, names[:_NAMES_TOLD]))
        more = ", …" if len(names) > _NAMES_TOLD else ""
        return f"names a column or field that no item has; the columns are {shown}{more}"
