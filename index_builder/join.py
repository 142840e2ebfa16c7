"""Rows of parts and versions become the files of one version, sorted by id.

Of an id that comes twice the one whose place in the source is first keeps it, and the others are
skipped. Vectors and frames are copied block by block and items column by column: memory grows with
the ids and one column, not with what is joined.

Shape letters: N rows of all pieces, M rows of the version, n of one block, E dimensions.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index_builder.item_join import join_items, read_column, take
from index_builder.manifest import (
    FRAME_TIMES_FILE,
    FRAMES_FILE,
    ITEMS_FILE,
    PLACES_FILE,
    SKIPPED_FILE,
    VECTORS_FILE,
    VectorsInfo,
    VectorType,
)
from index_builder.parts import Part, write_skips
from index_builder.sources.entry import Skip
from index_builder.vectors import NORM_TOLERANCE, Rows, StoredVectors, Vectors, write_vectors

_BLOCK = 16_384
Skips = Iterator[tuple[int, Skip]]


@dataclass(frozen=True)
class Piece:
    """Some rows to be joined, in a folder with the files of a part or a version.

    Attributes:
        folder: where they are.
        vectors: how their vectors are stored.
        places_N: place of each row's entry in the order of sources, int64.
        skips: what was left out, with its place, in order of place.
        keep_N: which rows to take; `None` for all.
    """

    folder: Path
    vectors: VectorsInfo
    places_N: Rows
    skips: Callable[[], Skips]
    keep_N: np.ndarray | None = None


@dataclass(frozen=True)
class Joined:
    """What a join has written.

    Attributes:
        count: rows of the version.
        vectors: how their vectors are stored.
        skipped: lines of `skipped.jsonl`, by reason.
        duplicates: rows left out because their id was taken.
    """

    count: int
    vectors: VectorsInfo
    skipped: dict[str, int]
    duplicates: int


@dataclass(frozen=True)
class _Chosen:
    rows_M: Rows
    duplicate_rows: Rows
    places_N: Rows


def part_piece(part: Part, *, part_items: int) -> Piece:
    """A finished part as a piece of the join."""
    first = part.number * part_items

    def skips() -> Skips:
        places = (first + offset for offset in part.skip_offsets)
        return zip(places, part.skips(), strict=True)

    return Piece(part.folder, VectorsInfo(), part.offsets_N + first, skips)


def join(
    pieces: Sequence[Piece],
    folder: Path,
    *,
    dim: int,
    vectors: VectorType,
    has_frames: bool = False,
    keep_places: bool = False,
    interleaved: bool = False,
    excluded: Collection[str] = (),
) -> Joined:
    """Write vectors, items, skips and frames of a version; OSError if they cannot be.

    Args:
        pieces: what to join.
        folder: of the version.
        dim: width E.
        vectors: how to store the vectors.
        has_frames: whether there are frames.
        keep_places: write `places.npy`, for a later merge.
        interleaved: whether the places of one piece lie among those of another; else each piece
            comes after the one before it.
        excluded: ids to leave out.
    """
    paths = [piece.folder / ITEMS_FILE for piece in pieces]
    ids = read_column(paths, "id")
    chosen = _choose(ids, pieces, excluded)
    count = len(chosen.rows_M)
    counts: Counter[str] = Counter()
    skip_places: list[int] = []

    def skips() -> Iterator[Skip]:
        streams = [_all_skips(pieces, interleaved), _duplicates(ids, paths, chosen)]
        for place, skip in heapq.merge(*streams, key=lambda placed: placed[0]):
            counts[skip.reason] += 1
            if keep_places:
                skip_places.append(place)
            yield skip

    write_skips(skips(), folder / SKIPPED_FILE)
    info = VectorsInfo(type=vectors)
    if count or keep_places:  # a share of a gallery may be empty
        join_items(paths, chosen.rows_M, folder / ITEMS_FILE)
        info = write_vectors(
            folder / VECTORS_FILE,
            lambda: _vector_blocks(pieces, chosen.rows_M, dim, vectors),
            (count, dim),
            vectors,
        )
        if has_frames:
            for name in (FRAMES_FILE, FRAME_TIMES_FILE):
                _join_arrays(
                    [piece.folder / name for piece in pieces], chosen.rows_M, folder / name
                )
    if keep_places:
        places = np.concatenate([chosen.places_N[chosen.rows_M], np.array(skip_places, np.int64)])
        np.save(folder / PLACES_FILE, places, allow_pickle=False)
    return Joined(count, info, dict(sorted(counts.items())), len(chosen.duplicate_rows))


def _choose(ids: pa.ChunkedArray, pieces: Sequence[Piece], excluded: Collection[str]) -> _Chosen:
    """Which rows are taken, in order of id, and which were duplicates, in order of place."""
    places_N = np.concatenate([piece.places_N for piece in pieces])
    keep_N = np.concatenate([_keep(piece) for piece in pieces])
    if excluded:
        unwanted = pc.is_in(ids, value_set=pa.array(sorted(excluded), type=ids.type))
        keep_N &= ~np.asarray(unwanted.combine_chunks().to_numpy(zero_copy_only=False), bool)
    rows = np.flatnonzero(keep_N)
    table = pa.table({"id": ids.filter(pa.array(keep_N)), "place": places_N[rows]})
    keys = [("id", "ascending"), ("place", "ascending")]  # texts sort by their UTF-8 bytes
    order = pc.sort_indices(table, sort_keys=keys).to_numpy()
    sorted_ids = take(table.column("id"), order, ids.type)
    again = np.zeros(len(order), bool)
    if len(order) > 1:
        again[1:] = pc.equal(sorted_ids.slice(1), sorted_ids.slice(0, len(order) - 1)).to_numpy()
    rows_sorted = rows[order]
    duplicates = rows_sorted[again]
    by_place = np.argsort(places_N[duplicates], kind="stable")
    return _Chosen(rows_sorted[~again], duplicates[by_place], places_N)


def _keep(piece: Piece) -> np.ndarray:
    return np.ones(len(piece.places_N), bool) if piece.keep_N is None else piece.keep_N


def _all_skips(pieces: Sequence[Piece], interleaved: bool) -> Skips:
    """The skips of all pieces in order of place; equal places in order of the pieces."""
    if interleaved:
        streams = [piece.skips() for piece in pieces]
        return iter(heapq.merge(*streams, key=lambda placed: placed[0]))
    return (placed for piece in pieces for placed in piece.skips())


def _duplicates(ids: pa.ChunkedArray, paths: Sequence[Path], chosen: _Chosen) -> Skips:
    rows = chosen.duplicate_rows
    if not len(rows):
        return
    uris = read_column(paths, "uri")
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        names = take(ids, block, ids.type).to_pylist()
        where = take(uris, block, uris.type).to_pylist()
        for name, uri, place in zip(names, where, chosen.places_N[block].tolist(), strict=True):
            why = f"another item came first with the id {name!r}; rename one of them"
            yield place, Skip(name, uri, "duplicate_id", why)


def _vector_blocks(
    pieces: Sequence[Piece], rows_M: Rows, dim: int, wanted: VectorType
) -> Iterator[Vectors]:
    paths = [piece.folder / VECTORS_FILE for piece in pieces]
    scales = [piece.vectors.scale for piece in pieces]
    for at, groups in _blocks(_sizes(pieces), rows_M):
        out_nE = np.empty((at, dim), np.float32)
        for number, here, rows in groups:
            stored = np.load(paths[number], mmap_mode="r", allow_pickle=False)
            out_nE[here] = StoredVectors(stored, scales[number]).rows(rows)
        if wanted != "int8":
            _make_unit_again(out_nE)
        yield out_nE


def _make_unit_again(vectors_nE: Vectors) -> None:
    """Rows that were stored as int8, for a finer type; all others stay as they are."""
    norms_n = np.linalg.norm(vectors_nE, axis=1)
    off_n = np.abs(norms_n - 1)
    coarse_n = (off_n > NORM_TOLERANCE["float32"]) & (off_n <= NORM_TOLERANCE["int8"])
    vectors_nE[coarse_n] /= norms_n[coarse_n, None]


def _join_arrays(paths: Sequence[Path], rows_M: Rows, out: Path) -> None:
    """The chosen rows of several `.npy` files, written in order."""
    first = np.load(paths[0], mmap_mode="r", allow_pickle=False)
    sizes = [len(np.load(path, mmap_mode="r", allow_pickle=False)) for path in paths]
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (len(rows_M), *first.shape[1:]),
    }
    with out.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        for size, groups in _blocks(sizes, rows_M):
            block = np.empty((size, *first.shape[1:]), first.dtype)
            for number, here, rows in groups:
                block[here] = np.load(paths[number], mmap_mode="r", allow_pickle=False)[rows]
            handle.write(block.tobytes())


def _sizes(pieces: Sequence[Piece]) -> list[int]:
    """How many rows each piece has, kept or not."""
    return [len(piece.places_N) for piece in pieces]


def _blocks(
    sizes: Sequence[int], rows_M: Rows
) -> Iterator[tuple[int, list[tuple[int, Rows, Rows]]]]:
    """Blocks of chosen rows: their number, and for each piece where in the block, and its rows.

    Pieces are opened for each block anew, so that what was mapped for one is given back.
    """
    ends = np.cumsum(sizes)
    for start in range(0, len(rows_M), _BLOCK):
        rows_n = rows_M[start : start + _BLOCK]
        owner_n = np.searchsorted(ends, rows_n, side="right")
        order_n = np.argsort(owner_n, kind="stable")
        numbers, firsts = np.unique(owner_n[order_n], return_index=True)
        groups = [
            (int(number), here, rows_n[here] - (ends[number] - sizes[number]))
            for number, here in zip(numbers, np.split(order_n, firsts[1:]), strict=True)
        ]
        yield len(rows_n), groups
