"""Which source SRC means: a folder, shards, a manifest, an annotation file or texts; local or urls.

open_source(["photos"])                                     # a folder
open_source(["s3://bucket/shards/*.tar"])                   # tar shards
open_source(["items.parquet", "images/"])                   # a manifest, and where its files lie
open_source(["dataset.json#val", "val-00000.tar"])          # Karpathy's json, one split
open_source(["captions.txt"], modality="text")              # a text per line
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cots_model.errors import InputError
from index_builder.location import Stamp, is_url, is_utf8, redact
from index_builder.manifest import Modality
from index_builder.sources.annotations import AnnotationSource, read_annotations
from index_builder.sources.entry import Source
from index_builder.sources.finders import Finder, FolderFinder, ShardFinder
from index_builder.sources.folder import FolderSource
from index_builder.sources.kinds import kind_of
from index_builder.sources.manifest import PATH_COLUMNS, ManifestSource
from index_builder.sources.patterns import expand_pattern
from index_builder.sources.places import folder_of, open_place, suffix_of
from index_builder.sources.rows import ROW_SUFFIXES, RowFile, open_rows, rows_of_list
from index_builder.sources.shards import ShardSource
from index_builder.sources.text_file import LineSource

_SPLIT = re.compile(r"^(?P<file>.+\.json)#(?P<splits>[^#/]+)$", re.IGNORECASE)
_MANIFESTS = ROW_SUFFIXES | {".json"}
_FILES = _MANIFESTS | {".tar", ".txt"}
_ACCEPTED = (
    "accepted: a folder, tar shards (a file, *.tar or {000..009}.tar), a csv, tsv, json, jsonl or "
    "parquet manifest, an annotation json with its image folder, .txt files for text galleries, "
    "or a url (s3://...) of one of these"
)


def open_source(
    arguments: Sequence[str],
    *,
    modality: Modality = "image",
    exclude: Path | None = None,
    root: str | Path | None = None,
) -> Source:
    """The source that SRC means.

    Args:
        arguments: one folder; shards; manifests; or an annotation file. Behind manifests and
            annotation files the folder or shards that hold their files may follow.
        modality: what is looked for.
        exclude: a folder that is not entered (the gallery being built).
        root: where the files of a manifest lie, if it does not follow as an argument.

    Raises:
        InputError: if nothing is there, or it is of a kind that cannot be read.
        ContentError: if a file or url cannot be read.
    """
    kind_of(modality)
    first, splits = _split_of(arguments[0])
    places = expand_pattern(first, accepted=_ACCEPTED)
    for place in places:
        _check_name(place)
    source: Source
    if suffix_of(places[0]) in _MANIFESTS and not _is_folder(places[0]):
        source = _described(places, arguments[1:], root, splits, modality)
    elif root is not None:
        raise InputError(f"{arguments[0]} is no manifest; only manifests have a root")
    elif len(arguments) == 1 and len(places) == 1 and _is_folder(places[0]):
        source = _folder(places[0], modality, exclude)
    else:
        places += [place for one in arguments[1:] for place in expand_pattern(one)]
        source = _files(places, modality)
    _check_name(source.name)
    return source


def _folder(place: str, modality: Modality, exclude: Path | None) -> Source:
    if is_url(place):
        from index_builder.sources.url_folder import UrlFolderSource

        return UrlFolderSource(place, modality=modality)
    return FolderSource(Path(place), modality=modality, exclude=exclude)


def _files(places: Sequence[str], modality: Modality) -> Source:
    if all(suffix_of(place) == ".txt" for place in places) and modality == "text":
        _check_files(places, ".txt")
        return LineSource(places)
    _check_files(places, ".tar")
    return ShardSource(places, modality=modality)


def _described(
    places: list[str],
    rest: Sequence[str],
    root: str | Path | None,
    splits: frozenset[str],
    modality: Modality,
) -> Source:
    """The source of manifests or of one annotation file."""
    roots = [place for one in rest for place in expand_pattern(one)]
    while roots and suffix_of(roots[0]) in _MANIFESTS:
        places.append(roots.pop(0))
    if root is not None:
        roots += expand_pattern(str(root))
    finder = _finder(places[0], roots)
    for place in places:
        _check_files([place], suffix_of(place))
    if suffix_of(places[0]) == ".json":
        if len(places) > 1:
            raise InputError(f"{places[1]} follows another json file; one is accepted")
        return _json_source(places[0], finder, splits, modality)
    if splits:
        raise InputError(f"{places[0]} has no splits; filter its rows before")
    words = frozenset(PATH_COLUMNS[modality])
    files = [open_rows(place, words=words) for place in places]
    return ManifestSource(files, finder, modality=modality)


def _json_source(place: str, finder: Finder, splits: frozenset[str], modality: Modality) -> Source:
    try:
        handle, stamp = open_place(place, block_bytes=4 * 1024 * 1024)
        with handle:
            content = json.load(handle)
    except (OSError, ValueError, RecursionError) as err:
        raise InputError(f"{place} cannot be read as json ({err}); write it again") from err
    if isinstance(content, list):
        if splits:
            raise InputError(f"{place} is a list of rows and has no splits; filter them before")
        rows: RowFile = rows_of_list(place, content)
        return ManifestSource([rows], finder, modality=modality)
    annotations = read_annotations(place, content, splits)
    known: Stamp | None = stamp if stamp.mtime_s else None
    return AnnotationSource(place, annotations, finder, modality=modality, stamp=known)


def _finder(manifest: str, roots: list[str]) -> Finder:
    """What finds the files of a manifest: below its own folder, unless a root was given."""
    if not roots:
        return FolderFinder(folder_of(manifest), closed=False)
    if all(suffix_of(place) == ".tar" and not _is_folder(place) for place in roots):
        _check_files(roots, ".tar")
        return ShardFinder(roots)
    if len(roots) == 1 and _is_folder(roots[0]):
        return FolderFinder(roots[0], closed=True)
    shown = ", ".join(map(redact, roots[:3]))
    raise InputError(
        f"{shown} cannot hold the files of a manifest; accepted: one folder or url, or tar shards"
    )


def _split_of(argument: str) -> tuple[str, frozenset[str]]:
    """`dataset.json#train,restval` as its file and splits; a file of that very name is no split."""
    match = _SPLIT.match(argument)
    if match is None or (not is_url(argument) and os.path.lexists(argument)):
        return argument, frozenset()
    return match["file"], frozenset(match["splits"].split(","))


def _is_folder(place: str) -> bool:
    if not is_url(place):
        return os.path.isdir(place)
    if suffix_of(place) in _FILES:
        return False
    from index_builder.remote import look_at

    return look_at(place).is_folder


def _check_name(name: str) -> None:
    """A manifest records where its items come from, and can only do so in UTF-8."""
    if not is_utf8(name):
        raise InputError(f"the path {name!a} is not valid UTF-8; rename it")


def _check_files(places: Sequence[str], suffix: str) -> None:
    """Refuse what is no such file; of many urls, whether the first is there is asked."""
    for number, place in enumerate(places):
        if _is_folder(place):
            raise InputError(
                f"{place} is a folder among several sources; give one folder, or only files; "
                "`cots index merge` joins the galleries of several folders"
            )
        if is_url(place) and number == 0:
            from index_builder.remote import look_at

            look_at(place)
        elif not is_url(place) and not os.path.isfile(place):
            raise InputError(f"{place} is not a file that can be read; {_ACCEPTED}")
        if suffix_of(place) != suffix:
            raise InputError(f"{redact(place)} is of another kind; {_ACCEPTED}{_hint(place)}")


def _hint(place: str) -> str:
    if ".tar." in place or place.endswith(".tgz"):
        return "; unpack or decompress it first"
    return "; a .txt file needs --modality text" if suffix_of(place) == ".txt" else ""
