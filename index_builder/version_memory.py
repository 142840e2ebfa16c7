"""How much main memory a version takes once it is open, told from its files before they are read.

The table of items, what filters make of its columns of JSON, and most indexes are held in memory.
Vectors, frames and the indexes of `MAPPED` are mapped: their pages are the system's, which drops
them when memory is needed, so they are not counted.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cots_model.errors import GalleryError
from index_builder.indexes.faiss_file import MAPPED
from index_builder.items import is_json_column
from index_builder.manifest import INDEX_FILE, ITEMS_FILE, METADATA_FILE, Manifest

_BASE_BYTES = 1 << 20
_TABLE_FACTOR = 2  # texts that repeat are stored once in a column's pages, and not in memory
_JSON_FACTOR = 4  # `1,` of a list becomes a number and its row
_JSON_VALUE_BYTES = 128  # of each row that has one: its text if that repeats, and its cells


def version_bytes(folder: Path, manifest: Manifest) -> int:
    """Main memory of an open version in bytes, about; if its rows are in Milvus, its metadata's.

    Raises:
        GalleryError: if the items' file is no parquet file.
    """
    index = manifest.files.get(INDEX_FILE)
    is_held = index is not None and manifest.index.kind not in MAPPED
    index_bytes = index.size_bytes if index is not None and is_held else 0
    tables = [name for name in (ITEMS_FILE, METADATA_FILE) if name in manifest.files]
    return _BASE_BYTES + index_bytes + sum(_table_bytes(folder / name) for name in tables)


def _table_bytes(path: Path) -> int:
    try:
        with pq.ParquetFile(path) as opened:
            found, schema = opened.metadata, opened.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as err:
        raise GalleryError(f"{path} is damaged ({err}); build the gallery again") from err
    groups = [found.row_group(n) for n in range(found.num_row_groups)]
    json_names = {column.name for column in schema if is_json_column(column)}
    decoded_bytes = sum(
        _JSON_FACTOR * column.total_uncompressed_size + _JSON_VALUE_BYTES * column.num_values
        for group in groups
        for column in map(group.column, range(group.num_columns))
        if column.path_in_schema in json_names
    )
    table_bytes = sum(int(group.total_byte_size) for group in groups)
    return _TABLE_FACTOR * table_bytes + int(decoded_bytes)
