"""The frames of a video gallery, `frames.npy` and `frame_times.npy`: where the moment is found.

Each video, or segment of one, has 16 frames: unit vectors in float16 `[N,F,E]`, and when they are
shown, in seconds from the start of the whole video, float64 `[N,F]`. Scores are computed from the
stored vectors by `exact_scores`, as everywhere.

Shape letters: Q queries, N rows, n some of them, F frames of a row, E dimensions, K results.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cots_model.errors import GalleryError, InputError
from cots_model.videos import NUM_FRAMES
from index_builder.indexes.exact import exact_scores
from index_builder.manifest import FRAME_TIMES_FILE, FRAMES_FILE
from index_builder.vectors import Rows, Vectors

BLOCK_ROWS = 1024

_MAX_NORM = 1.01  # unit vectors, moved by rounding to float16
_UNIT_ROUNDOFF = float(np.finfo(np.float32).eps) / 2

Times = npt.NDArray[np.float64]


class VideoFrames:
    """Vectors and times of all frames, memory-mapped; safe to use from several threads."""

    def __init__(self, frames_NFE: np.ndarray, times_NF: np.ndarray) -> None:
        """Hold float16 vectors and float64 times; `open_frames` is the usual way here."""
        self._frames_NFE = frames_NFE
        self._times_NF = times_NF

    def __len__(self) -> int:
        return len(self._frames_NFE)

    def vectors(self, row: int) -> Vectors:
        """The stored vectors `[F,E]` of a row, float32 (a copy)."""
        return np.array(self._frames_NFE[row], dtype=np.float32)

    def times(self, row: int) -> Times:
        """When the frames `[F]` of a row are shown, in seconds from the start of its video."""
        return np.array(self._times_NF[row])

    def scores(self, query_E: Vectors, rows_n: Rows) -> Vectors:
        """The score `[n,F]` of each frame of some rows, float32."""
        scores_nF = np.empty((len(rows_n), self._frames_NFE.shape[1]), np.float32)
        for start in range(0, len(rows_n), BLOCK_ROWS):
            some_n = rows_n[start : start + BLOCK_ROWS]
            frames_nFE = self._frames_NFE[some_n].astype(np.float32)
            flat_GE = frames_nFE.reshape(-1, frames_nFE.shape[-1])
            scores_G = exact_scores(query_E, flat_GE)
            scores_nF[start : start + len(some_n)] = scores_G.reshape(len(some_n), -1)
        return scores_nF

    def best(self, query_E: Vectors, rows_n: Rows) -> tuple[Rows, Vectors]:
        """The best frame of each row: its number `[n]` and score `[n]`; of equals the first."""
        scores_nF = self.scores(query_E, rows_n)
        numbers_n = scores_nF.argmax(axis=1)
        return numbers_n, scores_nF[np.arange(len(rows_n)), numbers_n]

    def search(self, query_QE: Vectors, k: int) -> tuple[Vectors, Rows]:
        """The `k` rows whose best frame is nearest to each query, exactly.

        Every frame is compared, a block of rows at a time; `k` is capped at N.

        Returns:
            scores `[Q,K]` float32 and rows `[Q,K]` int64; best first, equal scores by row.

        Raises:
            InputError: if the queries' width is not the frames', or a value is not finite.
        """
        query_QE = np.ascontiguousarray(query_QE, dtype=np.float32)
        dim = self._frames_NFE.shape[2]
        if query_QE.ndim != 2 or query_QE.shape[1] != dim or not np.isfinite(query_QE).all():
            raise InputError(
                f"queries of shape {query_QE.shape}; finite numbers [Q, {dim}] are accepted here"
            )
        k = min(k, len(self))
        kept = [_Candidates(query_E, k) for query_E in query_QE]
        for first in range(0, len(self), BLOCK_ROWS):
            block_nFE = self._frames_NFE[first : first + BLOCK_ROWS].astype(np.float32)
            flat_GE = block_nFE.reshape(-1, block_nFE.shape[-1])
            near_Qn = (query_QE @ flat_GE.T).reshape(len(query_QE), *block_nFE.shape[:2]).max(2)
            for candidates, near_n in zip(kept, near_Qn, strict=True):
                candidates.add(near_n, first)
        scores_QK = np.empty((len(query_QE), k), np.float32)
        rows_QK = np.empty((len(query_QE), k), np.int64)
        for number, (query_E, candidates) in enumerate(zip(query_QE, kept, strict=True)):
            _, scores_C = self.best(query_E, candidates.rows_C)
            order_K = np.argsort(-scores_C, kind="stable")[:k]
            scores_QK[number], rows_QK[number] = scores_C[order_K], candidates.rows_C[order_K]
        return scores_QK, rows_QK


class _Candidates:
    """The rows that can be among the `k` best of a query, by scores that rounding has moved."""

    def __init__(self, query_E: Vectors, k: int) -> None:
        norm = float(np.linalg.norm(query_E))
        self._k = k
        # Bound on the error of a float32 sum of E products (Higham 2002, eq. 3.5), on both sides.
        self._slack = 2 * 2 * len(query_E) * _UNIT_ROUNDOFF * norm * _MAX_NORM
        self._near_C = np.empty(0, np.float32)
        self.rows_C = np.empty(0, np.int64)

    def add(self, near_n: Vectors, first_row: int) -> None:
        """Take the next rows, in order."""
        near_C = np.concatenate([self._near_C, near_n])
        rows_C = np.concatenate([self.rows_C, np.arange(first_row, first_row + len(near_n))])
        if len(near_C) > self._k:
            least = np.partition(near_C, -self._k)[-self._k] - self._slack
            kept = near_C >= least
            near_C, rows_C = near_C[kept], rows_C[kept]
        self._near_C, self.rows_C = near_C, rows_C


def open_frames(folder: Path, shape: tuple[int, int]) -> VideoFrames:
    """Open the frames of a version's folder.

    Args:
        folder: of the version; check the files' sha256 before calling.
        shape: `(N, E)` of its vectors.

    Raises:
        GalleryError: if a file is damaged or does not fit the vectors.
    """
    num_rows, dim = shape
    frames_NFE = _load(folder / FRAMES_FILE, (num_rows, NUM_FRAMES, dim), np.float16)
    times_NF = _load(folder / FRAME_TIMES_FILE, (num_rows, NUM_FRAMES), np.float64)
    if not np.isfinite(times_NF).all():
        raise GalleryError(
            f"{folder / FRAME_TIMES_FILE} holds NaN or infinity; build the gallery again"
        )
    return VideoFrames(frames_NFE, times_NF)


def _load(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as err:
        raise GalleryError(f"{path} is damaged ({err}); build the gallery again") from err
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise GalleryError(
            f"{path} holds {array.dtype} {array.shape}; {np.dtype(dtype)} {shape} fits the "
            "vectors; build the gallery again"
        )
    return np.asarray(array) if array.size == 0 else array
