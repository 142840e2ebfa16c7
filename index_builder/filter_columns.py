"""Metadata by column, as filters see it: cells sorted by type.

A column of one simple type is taken as it lies in the items' table. A column of JSON is decoded
once (`filter_json`), into the cells of each type and of each field of its objects: `exif.iso` are
the values under `iso` in the objects of `exif`. Elements of lists keep the row of their list.

Shape letters: N rows, C cells, n rows that have a value.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from index_builder.filter_cells import KINDS, Cells, Column
from index_builder.filter_json import decode_column
from index_builder.indexes.base import OnBlock, go_on
from index_builder.items import MetadataColumn

_WAIT_S = 0.05


class MetadataColumns:
    """The columns of an opened version, by name; safe to use from several threads."""

    def __init__(self, columns: Iterable[MetadataColumn], num_rows: int) -> None:
        """Hold columns of `num_rows` rows; those of JSON are decoded when one is asked for."""
        self._columns = {column.name: _Source(column, num_rows) for column in columns}

    def names(self) -> list[str]:
        """The columns, without the fields of their objects."""
        return list(self._columns)

    def decode(self, between: OnBlock = go_on) -> None:
        """Decode all columns of JSON now, so that no `find` has to.

        Args:
            between: called again and again meanwhile, to let other threads run.

        Raises:
            GalleryError: naming a column that holds what is no JSON.
        """
        for source in self._columns.values():
            source.sort(between)

    def find(self, name: str, on_block: OnBlock) -> Column | None:
        """A column, or with dots a field of one; `None` if no row has it.

        Of `a.b.c` the longest name that is a column is taken: `a.b.c`, else `a.b`, else `a`.

        Args:
            name: of the column.
            on_block: called again and again while another thread decodes the column.
        """
        end = len(name)
        while end >= 0:
            source = self._columns.get(name[:end])
            found = None if source is None else source.fields(on_block).get(name[end:])
            if found is not None:
                return found
            end = name.rfind(".", 0, end)
        return None


class _Source:
    """A column as it is stored; the first to ask for it sorts its cells, and they are kept."""

    def __init__(self, column: MetadataColumn, num_rows: int) -> None:
        self._column = column
        self._num_rows = num_rows
        self._fields: Mapping[str, Column] | None = None
        self._sorting = threading.Lock()

    def sort(self, between: OnBlock) -> None:
        """Have the cells sorted."""
        with self._sorting:
            if self._fields is None:
                self._fields = self._sorted(between)

    def fields(self, on_block: OnBlock) -> Mapping[str, Column]:
        """The column itself under the empty name, and `.name` for each field of its objects."""
        while self._fields is None:
            if not self._sorting.acquire(timeout=_WAIT_S):
                on_block()
                continue
            try:
                if self._fields is None:
                    self._fields = self._sorted(go_on)
            finally:
                self._sorting.release()
        return self._fields

    def _sorted(self, between: OnBlock) -> Mapping[str, Column]:
        values = self._column.values
        if self._column.is_json:
            return decode_column(self._column, self._num_rows, between)
        return {"": Column((Cells(KINDS[values.type], values),), ())}
