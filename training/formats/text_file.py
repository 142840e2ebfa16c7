"""Lines of text files, and lists of names that choose a part of a data set."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cots_model.errors import InputError
from training.formats.entries import Entry, clean_captions

_NAME_COLUMNS = ("video_id", "image", "filename", "file_name", "image_id")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except OSError as err:
        raise InputError(f"{path} cannot be read ({err.strerror})") from err
    except UnicodeDecodeError as err:
        raise InputError(f"{path} is not UTF-8 ({err}); save it as UTF-8") from err


def head(path: Path, count: int) -> list[str]:
    """The first lines of a file; raises as `read_lines`."""
    return list(itertools.islice(read_lines(path), count))


def read_split_file(path: Path) -> dict[str, tuple[str, ...]]:
    """Names, each with the captions that the list itself gives it, which may be none.

    Raises:
        InputError: if it cannot be read, is empty, or is a csv without a column of names.
    """
    lines = [line for line in read_lines(path) if line.strip()]
    header = [name.strip() for name in lines[0].split(",")] if lines else []
    column = next((name for name in _NAME_COLUMNS if name in header), None)
    names: dict[str, tuple[str, ...]] = {}
    if column is None:
        if len(header) > 1:
            raise InputError(
                f"{path}, line 1: the columns are {', '.join(header)}; one of "
                f"{', '.join(_NAME_COLUMNS)} is needed, or a plain list with one name a line"
            )
        names = {line.strip(): () for line in lines}
    else:
        for row in csv.DictReader(lines, skipinitialspace=True):
            name = (row[column] or "").strip()
            names[name] = names.get(name, ()) + clean_captions([row.get("sentence")])
    if not names:
        raise InputError(f"{path} names nothing; one name a line is needed")
    return names


def choose(entries: Iterator[Entry], names: dict[str, tuple[str, ...]]) -> Iterator[Entry]:
    """The entries whose id, file, file name or file name without suffix is listed.

    Captions of the list replace the entry's own.
    """
    for entry in entries:
        name = PurePosixPath(entry.file).name
        stem = name.rpartition(".")[0]
        key = next((k for k in (entry.id, entry.file, name, stem) if k in names), None)
        if key is not None:
            yield Entry(entry.id, entry.file, names[key] or entry.captions)
