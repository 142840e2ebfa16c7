"""Tables with a column of file names and one of captions: csv, tsv or parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cots_model.errors import InputError
from training.formats.entries import Entry, grouped
from training.formats.source import SourceConfig
from training.formats.text_file import head

IMAGE_COLUMNS = (
    "image",
    "filename",
    "file_name",
    "filepath",
    "file",
    "image_path",
    "path",
    "video",
    "video_id",
)
CAPTION_COLUMNS = ("caption", "captions", "sentence", "text", "title", "raw", "description")


def read_table(path: Path, source: SourceConfig) -> list[Entry]:
    """The pictures of a table; rows of the same picture are put together.

    Raises:
        InputError: if it cannot be read, lacks a column, or a column holds something else.
    """
    columns = _column_names(path)
    image = _choose(path, columns, source.image_column, IMAGE_COLUMNS, "image_column")
    caption = _choose(path, columns, source.caption_column, CAPTION_COLUMNS, "caption_column")
    table = _read(path, [image, caption])
    _check_types(path, table, image, caption)
    suffix = source.id_suffix if image == "video_id" or source.suffix is not None else ""
    return grouped(_pairs(path, table, image, caption, suffix))


def _pairs(
    path: Path, table: pa.Table, image: str, caption: str, suffix: str
) -> Iterator[tuple[str, list[object]]]:
    row = 0
    for batch in table.to_batches(max_chunksize=65_536):
        files, captions = batch.column(image).to_pylist(), batch.column(caption).to_pylist()
        for file, text in zip(files, captions, strict=True):
            row += 1
            if not file:
                raise InputError(f"{path}, row {row}: no {image}; every row needs one")
            yield file + suffix, text if isinstance(text, list) else [text]


def _column_names(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        try:
            return list(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as err:
            raise InputError(f"{path} cannot be read as parquet ({err})") from err
    first = head(path, 1)
    if not first:
        raise InputError(f"{path} is empty; a line of column names is needed")
    return [name.strip('"') for name in first[0].split(_delimiter(path))]


def _delimiter(path: Path) -> str:
    """Some csv files are separated by tabs; the header tells."""
    first = head(path, 1)
    return "\t" if path.suffix.lower() == ".tsv" or (first and "\t" in first[0]) else ","


def _choose(
    path: Path, columns: list[str], given: str | None, known: tuple[str, ...], key: str
) -> str:
    if given is not None:
        if given not in columns:
            raise InputError(f"{path} has no column {given!r}; it has {', '.join(columns)}")
        return given
    found = [name for name in known if name in columns]
    if not found:
        raise InputError(
            f"{path} has the columns {', '.join(columns)}; say with {key} which one to take "
            f"(taken by themselves: {', '.join(known)})"
        )
    return found[0]


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_table(path, columns=columns)
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=_delimiter(path), newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.string()),
                quoted_strings_can_be_null=False,
            ),
        )
    except (pa.ArrowException, OSError) as err:
        why = " ".join(str(err).split())
        raise InputError(f"{path} cannot be read ({why}); quote captions with commas") from err


def _check_types(path: Path, table: pa.Table, image: str, caption: str) -> None:
    def is_text(kind: pa.DataType) -> bool:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    kinds = {name: table.schema.field(name).type for name in (image, caption)}
    if not is_text(kinds[image]):
        raise InputError(f"{path}: the column {image} is {kinds[image]}; accepted are file names")
    is_list = pa.types.is_list(kinds[caption]) or pa.types.is_large_list(kinds[caption])
    if not is_text(kinds[caption].value_type if is_list else kinds[caption]):
        raise InputError(
            f"{path}: the column {caption} is {kinds[caption]}; accepted are strings and lists of "
            "strings"
        )
