"""How much main memory a version takes once it is open, told from its files before they are read.

The table of items and most indexes are held in memory. Vectors, frames and the indexes of
`MAPPED` are mapped: their pages are the system's, which drops them when memory is needed, so they
are not counted.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cots_model.errors import GalleryError
from index_builder.indexes.faiss_file import MAPPED
from index_builder.manifest import INDEX_FILE, ITEMS_FILE, Manifest

_BASE_BYTES = 1 << 20
_TABLE_FACTOR = 2  # texts that repeat are stored once in a column's pages, and not in memory


def version_bytes(folder: Path, manifest: Manifest) -> int:
    """Main memory of an open version in bytes, about; next to nothing if its rows are in Milvus.

    Raises:
        GalleryError: if the items' file is no parquet file.
    """
    index = manifest.files.get(INDEX_FILE)
    is_held = index is not None and manifest.index.kind not in MAPPED
    index_bytes = index.size_bytes if index is not None and is_held else 0
    table_bytes = _table_bytes(folder / ITEMS_FILE) if ITEMS_FILE in manifest.files else 0
    return _BASE_BYTES + index_bytes + _TABLE_FACTOR * table_bytes


def _table_bytes(path: Path) -> int:
    try:
        found = pq.read_metadata(path)
    except (pa.ArrowException, OSError, ValueError) as err:
        raise GalleryError(f"{path} is damaged ({err}); build the gallery again") from err
    return sum(found.row_group(n).total_byte_size for n in range(found.num_row_groups))
