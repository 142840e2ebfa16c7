"""How much main memory a version takes once it is open, told from its files before they are read.

The table of items, what filters make of its columns of JSON, and most indexes are held in memory.
Vectors, frames and the indexes of `MAPPED` are mapped: their pages are the system's, which drops
them when memory is needed, so they are not counted.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cots_model.errors import GalleryError
from index_builder.indexes.faiss_file import MAPPED
from index_builder.items import METADATA_PREFIX, is_json_column
from index_builder.manifest import INDEX_FILE, ITEMS_FILE, METADATA_FILE, Manifest

_BASE_BYTES = 1 << 20
_TABLE_FACTOR = 2  # of what is no text of metadata
_JSON_FACTOR = 8  # `1,` of a list becomes a number and its row
_JSON_VALUE_BYTES = 64  # of each row that has one: its cells


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
        groups = [found.row_group(n) for n in range(found.num_row_groups)]
        table_bytes = _TABLE_FACTOR * sum(int(group.total_byte_size) for group in groups)
        texts = [column for column in schema if _is_text_of_metadata(column)]
        return table_bytes + sum(_text_bytes(path, column) for column in texts)
    except (pa.ArrowException, OSError, ValueError) as err:
        raise GalleryError(f"{path} is damaged ({err}); build the gallery again") from err


def _is_text_of_metadata(column: pa.Field) -> bool:
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return bool(is_text and column.name.startswith(METADATA_PREFIX))


def _text_bytes(path: Path, column: pa.Field) -> int:
    """Bytes of a column's texts in memory, where one that repeats is there again and again.

    In the file it is there once for each group of rows, so the sizes that the file tells are no
    use: each group is read with its texts apart from the rows that have them.
    """
    num_bytes = num_values = 0
    with pq.ParquetFile(path, read_dictionary=[column.name]) as opened:
        for group in range(opened.num_row_groups):
            for chunk in opened.read_row_group(group, columns=[column.name]).column(0).chunks:
                lengths = pc.binary_length(chunk.dictionary)
                num_bytes += pc.sum(lengths.take(chunk.indices)).as_py() or 0
                num_values += len(chunk) - chunk.null_count
    if not is_json_column(column):
        return num_bytes
    return (1 + _JSON_FACTOR) * num_bytes + _JSON_VALUE_BYTES * num_values
