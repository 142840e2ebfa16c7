"""`metadata.parquet`, the metadata of an exported gallery by column: its one writer and reader.

Filters are evaluated here, as they are on galleries that are not exported, so that they mean the
same; Milvus sees no condition. A gallery's metadata are small beside its vectors.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cots_model.errors import GalleryError
from index_builder.items import METADATA_PREFIX, MetadataColumn, metadata_columns, write_table


def write_metadata(items: Path, path: Path) -> None:
    """Write the metadata columns of an items file, and nothing else of it."""
    table = pq.read_table(items, memory_map=True)
    names = [name for name in table.column_names if name.startswith(METADATA_PREFIX)]
    write_table(table.select(names), path)


def read_metadata(path: Path, count: int) -> list[MetadataColumn]:
    """The columns of `count` items.

    Raises:
        GalleryError: if the file is damaged, or of another gallery.
    """
    try:
        columns = metadata_columns(pq.read_table(path, memory_map=True).combine_chunks())
    except (pa.ArrowException, OSError, ValueError) as err:
        raise GalleryError(f"{path} is damaged ({err}); export the gallery again") from err
    if any(len(column.values) != count for column in columns):
        raise GalleryError(f"{path} is not of {count:,} items; export the gallery again")
    return columns
