"""From a source to its examples: which reader, which part of it, where the pictures lie."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from cots_model.errors import InputError
from cots_model.videos import VIDEO_SUFFIXES
from index_builder.content import Location
from training.example import Example
from training.formats.cursor import Cursor, load_json
from training.formats.entries import Entry
from training.formats.flickr import looks_like_flickr, read_flickr
from training.formats.json_files import (
    check_split_is_chosen,
    guess_json,
    read_coco,
    read_frozen,
    read_karpathy,
    read_list,
    read_msrvtt,
)
from training.formats.pairs import read_pairs
from training.formats.source import OPTIONS, Format, SourceConfig
from training.formats.table import read_table
from training.formats.text_file import choose, head, read_split_file

log = logging.getLogger(__name__)

_JSON: dict[str, Callable[[Cursor, SourceConfig], Iterable[Entry]]] = {
    "karpathy": read_karpathy,
    "coco": read_coco,
    "list": read_list,
    "msrvtt": read_msrvtt,
    "frozen": read_frozen,
}
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".token")


def read_source(source: SourceConfig, *, for_training: bool = False) -> list[Example]:
    """All pictures and videos with captions of a source, in a fixed order.

    Args:
        source: what to read.
        for_training: a file that knows splits must then be told which of them to take, even if
            it has one only.

    Raises:
        InputError: if it is missing or not in its format, saying where and what is accepted, or
            has several splits and none is chosen.
        ConfigError: if a key of the source means nothing for its format.
    """
    kind = source.format if source.format != "auto" else _guess_by_name(source)
    if kind in ("folder", "shards"):
        source.check_options(kind)
        return read_pairs(source.path)
    root = load_json(Path(source.path)) if kind in _JSON or kind is None else None
    if root is not None and kind is None:
        kind = guess_json(root)
    assert kind is not None
    source.check_options(kind)
    if root is not None and "split" in OPTIONS[kind]:
        check_split_is_chosen(root, source, for_training=for_training)
    return _examples(_entries(kind, root, source), source)


def kind_of(source: SourceConfig) -> Format | None:
    """The format as far as the name tells; `None` for json, of which there are several."""
    return source.format if source.format != "auto" else _guess_by_name(source)


def _guess_by_name(source: SourceConfig) -> Format | None:
    path = Path(source.path)
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        return "list" if suffix == ".jsonl" else None
    if suffix == ".parquet":
        return "table"
    if suffix in _TEXT_SUFFIXES and path.is_file():
        named = source.image_column or source.caption_column  # only tables have columns
        return "flickr" if not named and looks_like_flickr(head(path, 3)) else "table"
    if suffix in _TEXT_SUFFIXES:
        raise InputError(f"{path} cannot be read (there is no such file)")
    return "folder" if path.is_dir() else "shards"


def _entries(kind: Format, root: Cursor | None, source: SourceConfig) -> Iterator[Entry]:
    if root is not None:
        yield from _JSON[kind](root, source)
    elif kind == "flickr":
        yield from read_flickr(Path(source.path))
    else:
        yield from read_table(Path(source.path), source)


def _examples(entries: Iterator[Entry], source: SourceConfig) -> list[Example]:
    locate = _locator(source)
    if source.split_file is not None:
        names = read_split_file(source.split_file)
        entries = choose(entries, names)
    examples, num_silent = [], 0
    for entry in entries:
        if not entry.captions:
            num_silent += 1
            continue
        suffix = PurePosixPath(entry.file).suffix.lower()
        kind: Literal["picture", "video"] = "video" if suffix in VIDEO_SUFFIXES else "picture"
        examples.append(Example(entry.id, locate(entry.file), entry.captions, kind))
    if source.split_file is not None:
        _check_chosen(source, len(examples) + num_silent, len(names))
    if num_silent:
        log.warning("source %s: %d pictures without a caption", source.path, num_silent)
    return examples


def _check_chosen(source: SourceConfig, num_found: int, num_named: int) -> None:
    if num_found == 0:
        raise InputError(
            f"{source.path} has none of the {num_named:,} names of {source.split_file}; give the "
            "list that belongs to it"
        )
    if num_found < num_named:
        log.warning("%s has %d of %d names", source.path, num_found, num_named)


def _locator(source: SourceConfig) -> Callable[[str], Location]:
    """From a name in the annotation file to where the bytes are."""
    root = source.image_root
    if root is not None and root.is_file():
        return _tar_locator(root)
    if root is not None and not root.is_dir():
        raise InputError(f"the image_root {root} is neither a folder nor a tar file")

    def locate(file: str) -> Location:
        if root is None and not file.startswith("/"):
            raise InputError(
                f"{source.path} names pictures without saying where, such as {file!r}; give the "
                "folder or tar that holds them: {path: ..., image_root: ...}, or --image-root"
            )
        return Location(file if root is None else str(root / file))

    return locate


def _tar_locator(root: Path) -> Callable[[str], Location]:
    try:
        with tarfile.open(root, "r:") as archive:
            places = {
                member.name.removeprefix("./"): (member.offset_data, member.size)
                for member in archive
                if member.isreg()
            }
    except (tarfile.TarError, OSError, ValueError, OverflowError) as err:
        raise InputError(f"the image_root {root} cannot be read as a tar file ({err})") from err

    def locate(file: str) -> Location:
        offset, size = places.get(file, (None, None))
        if offset is None:  # opened, it is told as missing
            return Location(str(root / file))
        return Location(str(root), offset, size)

    return locate
