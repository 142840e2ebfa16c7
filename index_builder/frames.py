"""The frames of a video gallery, `frames.npy` and `frame_times.npy`: where the moment is found.

Each video, or segment of one, has 16 frames: unit vectors in float16 `[N,F,E]`, and when they are
shown, in seconds from the start of the whole video, float64 `[N,F]`. Scores are computed from the
stored vectors by `exact_scores`, as everywhere.

Shape letters: Q queries, N rows, n or M some of them, F frames of a row, E dimensions, K results.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cots_model.errors import GalleryError
from cots_model.videos import NUM_FRAMES
from index_builder.indexes.base import OnBlock, go_on
from index_builder.indexes.candidates import Candidates, settle
from index_builder.indexes.scores import exact_scores
from index_builder.manifest import FRAME_TIMES_FILE, FRAMES_FILE
from index_builder.query_vectors import checked_queries
from index_builder.vectors import Rows, Vectors

BLOCK_ROWS = 1024

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

    def search(
        self,
        query_QE: Vectors,
        k: int,
        *,
        rows_M: Rows | None = None,
        on_block: OnBlock = go_on,
    ) -> tuple[Vectors, Rows]:
        """The `k` rows whose best frame is nearest to each query, exactly.

        Every frame is compared, a block of rows at a time.

        Args:
            query_QE: `[Q,E]` float32.
            k: how many, capped at the number of rows.
            rows_M: the rows to choose from, ascending; all of them if not given.
            on_block: called before each block; what it raises ends the search.

        Returns:
            scores `[Q,K]` float32 and rows `[Q,K]` int64; best first, equal scores by row.

        Raises:
            InputError: if the queries' width is not the frames', or a value is not finite.
        """
        query_QE = checked_queries(query_QE, self._frames_NFE.shape[2])
        if rows_M is None:
            rows_M = np.arange(len(self), dtype=np.int64)
        k = min(k, len(rows_M))
        found = [Candidates(query_E, k) for query_E in query_QE]
        for start in range(0, len(rows_M), BLOCK_ROWS):
            on_block()
            some_n = rows_M[start : start + BLOCK_ROWS]
            block_nFE = self._ascending(some_n).astype(np.float32)
            flat_GE = block_nFE.reshape(-1, block_nFE.shape[-1])
            near_Qn = (query_QE @ flat_GE.T).reshape(len(query_QE), *block_nFE.shape[:2]).max(2)
            for candidates, near_n in zip(found, near_Qn, strict=True):
                candidates.add(near_n, some_n)

        def score(query_E: Vectors, rows_n: Rows) -> Vectors:
            return self.best(query_E, rows_n)[1]

        return settle(query_QE, found, k, score, on_block)

    def _ascending(self, rows_n: Rows) -> np.ndarray:
        """Frames as stored, of some rows in order; those of neighbours without a copy."""
        first, last = int(rows_n[0]), int(rows_n[-1])
        if last - first + 1 == len(rows_n):
            return self._frames_NFE[first : last + 1]
        return np.asarray(self._frames_NFE[rows_n])


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
