"""Frames of a video gallery: scored exactly, searched beside a loop, refused if damaged."""

import numpy as np
import pytest

from cots_model.errors import GalleryError, InputError
from index_builder.frames import BLOCK_ROWS, VideoFrames, open_frames
from index_builder.indexes.exact import exact_scores
from index_builder.manifest import FRAME_TIMES_FILE, FRAMES_FILE

DIM = 24


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((*shape, DIM)).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def times_of(num_rows: int) -> np.ndarray:
    return np.sort(np.random.default_rng(1).random((num_rows, 16)) * 90, axis=1)


@pytest.fixture
def frames():
    stored_NFE = unit(50, 16).astype(np.float16)
    return VideoFrames(stored_NFE, times_of(50))


def naive(frames: VideoFrames, query_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best frame of every row by a loop."""
    numbers, scores = [], []
    for row in range(len(frames)):
        scores_F = [exact_scores(query_E, vector_E[None])[0] for vector_E in frames.vectors(row)]
        numbers.append(int(np.argmax(scores_F)))
        scores.append(max(scores_F))
    return np.array(numbers), np.array(scores, np.float32)


def test_best_is_the_frame_of_the_highest_score(frames):
    for seed in range(5):
        query_E = unit(1, seed=seed + 10)[0]
        rows_n = np.array([7, 0, 49, 7])
        numbers_n, scores_n = frames.best(query_E, rows_n)
        expected_N, expected_scores_N = naive(frames, query_E)
        np.testing.assert_array_equal(numbers_n, expected_N[rows_n])
        np.testing.assert_array_equal(scores_n, expected_scores_N[rows_n])


def test_of_equal_frames_the_first_is_the_moment():
    stored_NFE = np.repeat(unit(3, 1), 16, axis=1).astype(np.float16)
    numbers_n, _ = VideoFrames(stored_NFE, times_of(3)).best(unit(1)[0], np.arange(3))
    assert numbers_n.tolist() == [0, 0, 0]


@pytest.mark.parametrize("k", [1, 3, 17, 50, 1000])
def test_search_is_the_order_of_best_frames(frames, k):
    query_QE = unit(4, seed=20)
    scores_QK, rows_QK = frames.search(query_QE, k)
    assert scores_QK.shape == rows_QK.shape == (4, min(k, 50))
    for query_E, scores_K, rows_K in zip(query_QE, scores_QK, rows_QK, strict=True):
        _, expected_N = naive(frames, query_E)
        order = np.argsort(-expected_N, kind="stable")[:k]
        np.testing.assert_array_equal(rows_K, order)
        np.testing.assert_array_equal(scores_K, expected_N[order])


def test_search_orders_ties_by_row_over_several_blocks():
    """Copies of one video lie in three blocks, and every place of them is a tie."""
    num_rows = 2 * BLOCK_ROWS + 100
    stored_NFE = unit(num_rows, 16).astype(np.float16)
    copies = [5, BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS + 99, 77]
    query_E = unit(1, seed=3)[0]
    stored_NFE[copies, 4] = query_E.astype(np.float16)
    frames = VideoFrames(stored_NFE, times_of(num_rows))
    for k in range(1, 7):
        _, [rows_K] = frames.search(query_E[None], k)
        assert rows_K[: len(copies)].tolist() == sorted(copies)[:k]
    alone, together = (frames.search(query, 9) for query in (query_E[None], unit(3, seed=3)))
    np.testing.assert_array_equal(alone[0][0], together[0][0])
    np.testing.assert_array_equal(alone[1][0], together[1][0])


def test_near_ties_are_settled_by_the_exact_score():
    """Rows that differ by less than a float32 sum can tell."""
    rng = np.random.default_rng(0)
    base_E = unit(1)[0].astype(np.float16)
    stored_NFE = np.tile(base_E, (300, 16, 1))
    for row in range(300):  # swap two components: the same products in another order
        one, two = rng.choice(DIM, 2, replace=False)
        stored_NFE[row, :, one] = np.nextafter(stored_NFE[row, 0, one], np.float16(1))
        stored_NFE[row, :, two] = np.nextafter(stored_NFE[row, 0, two], np.float16(-1))
    frames = VideoFrames(stored_NFE, times_of(300))
    query_E = np.full(DIM, 1 / np.sqrt(DIM), np.float32)
    [scores_K], [rows_K] = frames.search(query_E[None], 20)
    _, expected_N = naive(frames, query_E)
    order = np.argsort(-expected_N, kind="stable")[:20]
    np.testing.assert_array_equal(rows_K, order)
    np.testing.assert_array_equal(scores_K, expected_N[order])


@pytest.mark.parametrize(
    "query", [np.zeros((1, DIM + 1)), np.zeros(DIM), np.full((1, DIM), np.nan)]
)
def test_search_refuses_queries_that_do_not_fit(frames, query):
    with pytest.raises(InputError, match=r"\[Q, 24\] is accepted|only finite numbers are"):
        frames.search(query, 1)


def write(folder, frames_NFE, times_NF) -> None:
    np.save(folder / FRAMES_FILE, frames_NFE)
    np.save(folder / FRAME_TIMES_FILE, times_NF)


def test_frames_that_were_written_are_opened(tmp_path):
    frames_NFE, times_NF = unit(5, 16).astype(np.float16), times_of(5)
    write(tmp_path, frames_NFE, times_NF)
    opened = open_frames(tmp_path, (5, DIM))
    assert len(opened) == 5
    np.testing.assert_array_equal(opened.vectors(3), frames_NFE[3].astype(np.float32))
    np.testing.assert_array_equal(opened.times(3), times_NF[3])


@pytest.mark.parametrize(
    ("frames_NFE", "times_NF", "named"),
    [
        (unit(5, 16), times_of(5), FRAMES_FILE),  # float32
        (unit(4, 16).astype(np.float16), times_of(5), FRAMES_FILE),
        (unit(5, 15).astype(np.float16), times_of(5), FRAMES_FILE),
        (unit(5, 16).astype(np.float16), times_of(4), FRAME_TIMES_FILE),
        (unit(5, 16).astype(np.float16), times_of(5).astype(np.float32), FRAME_TIMES_FILE),
        (unit(5, 16).astype(np.float16), np.full((5, 16), np.nan), FRAME_TIMES_FILE),
    ],
)
def test_frames_that_do_not_fit_are_refused_by_name(tmp_path, frames_NFE, times_NF, named):
    write(tmp_path, frames_NFE, times_NF)
    with pytest.raises(GalleryError, match=rf"{named} .*build the gallery again"):
        open_frames(tmp_path, (5, DIM))


@pytest.mark.parametrize("name", [FRAMES_FILE, FRAME_TIMES_FILE])
def test_damaged_and_pickled_frames_are_refused(tmp_path, name):
    write(tmp_path, unit(5, 16).astype(np.float16), times_of(5))
    whole = (tmp_path / name).read_bytes()
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for data in (whole[:-10], whole[:20], b"", (tmp_path / "pickled.npy").read_bytes()):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(GalleryError, match=rf"{name} is damaged"):
            open_frames(tmp_path, (5, DIM))
