"""Pictures decoded once and kept on disk, stretched to squares: bytes for `training.resident`.

Shape letters: M pictures, S side, K pictures decoded at a time.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cots_model.errors import InputError
from cots_model.preprocess import resize
from training.broken import BrokenCount
from training.cache_files import alone, cache_key
from training.example import BrokenExampleError, Example
from training.loader import batched, prepare_all

log = logging.getLogger(__name__)

_VERSION = b"pictures 1 "  # of what is stored
_AT_ONCE = 64  # pictures that a loading process hands over


@dataclass(frozen=True)
class DecodedPictures:
    """All M pictures of a run.

    Attributes:
        pixels_MCSS: uint8, memory-mapped; zeros where a picture could not be decoded.
        broken: rows of those.
    """

    pixels_MCSS: np.ndarray
    broken: frozenset[int]


def decoded_pictures(
    examples: Sequence[Example],
    *,
    side: int,
    folder: Path,
    num_workers: int = 0,
    max_broken_share: float = 0.05,
) -> DecodedPictures:
    """Open the file of these pictures, after decoding them if it is not there.

    It is named by the pictures' contents and the side. Pictures that were broken are tried again.

    Args:
        examples: the M pictures.
        side: S.
        folder: of all such files.
        num_workers: processes that decode.
        max_broken_share: of pictures that may be broken.

    Raises:
        InputError: if more than that are broken, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    decided = _VERSION + str(side).encode()
    path = folder / f"pictures-{cache_key(decided, examples)}.npy"
    count = BrokenCount(max_share=max_broken_share, num_expected=len(examples))
    with alone(path):
        if path.exists():
            broken = _tried_again(path, examples, count)
        else:
            log.info("decoding %d pictures, kept in %s", len(examples), path)
            broken = _decode(path, examples, side, num_workers, count)
    count.finish("decoded pictures")
    return DecodedPictures(np.load(path, mmap_mode="r"), frozenset(broken))


def _decode(
    path: Path, examples: Sequence[Example], side: int, num_workers: int, count: BrokenCount
) -> set[int]:
    """Write the file and the list of what is broken beside it; the rows of that."""
    unfinished, broken = path.with_suffix(".partial"), set[int]()
    shape = (len(examples), 3, side, side)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    steps = batched(list(enumerate(examples)), _AT_ONCE)
    with (
        _told_of_a_full_disk(unfinished, math.prod(shape)),
        unfinished.open("wb") as file,  # not mapped: a full disk would kill the process
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for pixels_KCSS, errors in prepare_all(_Decode(side), steps, num_workers=num_workers):
            count.add(len(pixels_KCSS), [error for _, error in errors])
            broken |= {row for row, _ in errors}
            file.write(pixels_KCSS.numpy().tobytes())
    _write_list(path, broken)
    unfinished.replace(path)
    return broken


def _tried_again(path: Path, examples: Sequence[Example], count: BrokenCount) -> set[int]:
    """Decode what was broken when the file was made; the rows of what still is."""
    before = list[int](json.loads(_list_of(path).read_text()))
    count.add(len(examples) - len(before), [])
    if not before:
        return set()
    pixels_MCSS = np.lib.format.open_memmap(path, "r+")
    step = [(row, examples[row]) for row in before]
    pixels_KCSS, errors = _Decode(pixels_MCSS.shape[-1])(step)
    count.add(len(before), [error for _, error in errors])
    pixels_MCSS[before] = pixels_KCSS.numpy()
    pixels_MCSS.flush()
    broken = {row for row, _ in errors}
    _write_list(path, broken)
    return broken


def _write_list(path: Path, broken: set[int]) -> None:
    unfinished = path.with_suffix(".rows")
    unfinished.write_text(json.dumps(sorted(broken)))
    unfinished.replace(_list_of(path))


@contextmanager
def _told_of_a_full_disk(unfinished: Path, num_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        unfinished.unlink(missing_ok=True)
        raise InputError(
            f"{num_bytes / 2**30:.1f} GiB of decoded pictures cannot be kept in "
            f"{unfinished.parent}: {err}; give data.cache_dir another disk, lower "
            "data.resident_side or leave it out"
        ) from err


def _list_of(path: Path) -> Path:
    """Beside a file of pictures: the rows that hold none."""
    return path.with_suffix(".json")


class _Decode:
    """Decodes some pictures; can be pickled."""

    def __init__(self, side: int) -> None:
        self._side = side

    def __call__(
        self, numbered: Sequence[tuple[int, Example]]
    ) -> tuple[Tensor, list[tuple[int, BrokenExampleError]]]:
        """Pixels `[K,3,S,S]` uint8, and errors by row."""
        pixels_KCSS = torch.zeros(len(numbered), 3, self._side, self._side, dtype=torch.uint8)
        errors = []
        for place, (row, example) in enumerate(numbered):
            try:
                img = resize(example.picture(), self._side, "squash")
            except BrokenExampleError as err:
                errors.append((row, err))
                continue
            pixels_KCSS[place] = torch.from_numpy(np.array(img)).permute(2, 0, 1)
        return pixels_KCSS, errors
