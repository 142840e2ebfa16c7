"""Videos in the decoding pool: clips and times, segments, and how far ahead they are decoded."""

import hashlib
import time

import numpy as np
import pytest

from cots_model.errors import InputError
from cots_model.videos import iter_clips
from index_builder.content import Location
from index_builder.pipeline.decode import DecodePool
from index_builder.pipeline.result import Decoded
from index_builder.sources.entry import Candidate, Skip

av = pytest.importorskip("av")

RATE = 5


def save_video(path, seconds, *, side=32, seed=0):
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for _ in range(seconds * RATE):
            pixels = np.full((side, side, 3), rng.integers(0, 256, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def candidate(path):
    return Candidate(path.name, path.as_uri(), Location(str(path)), path.name)


def pool(encoder, **options):
    settings = {"workers": 2, "timeout_s": 30.0, "window": 8, "modality": "video", **options}
    return DecodePool(encoder.preprocess, **settings)


def test_video_is_one_item_with_its_frames_times_and_hash(encoder, tmp_path):
    paths = [save_video(tmp_path / f"{n}.mp4", 1 + n, seed=n) for n in range(3)]
    with pool(encoder) as workers:
        results = list(workers.decode(candidate(path) for path in paths))
    assert [(result.number, result.last) for result in results] == [(n, True) for n in range(3)]
    for path, result in zip(paths, results, strict=True):
        decoded = result.value
        [clip] = iter_clips(path)
        expected_U = encoder.preprocess.images(clip.frames).numpy()
        np.testing.assert_array_equal(decoded.pixels_U, expected_U)
        assert len(decoded.pixels_U) == 16
        assert decoded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert decoded.stamp.size_bytes == path.stat().st_size
        assert decoded.clip.times_s == clip.times_s
        assert decoded.clip.duration_s == clip.duration_s
        assert decoded.clip.start_s is None


def test_segments_are_items_of_their_own_in_order(encoder, tmp_path):
    long, short = save_video(tmp_path / "a.mp4", 30), save_video(tmp_path / "b.mp4", 2)
    with pool(encoder, segment_s=3.0, window=2) as workers:
        results = list(workers.decode(map(candidate, [short, long, short])))
    assert [result.number for result in results] == [0] + [1] * 10 + [2]
    assert [result.last for result in results] == [True] + [False] * 9 + [True, True]
    starts = [result.value.clip.start_s for result in results[1:-1]]
    assert starts == [pytest.approx(3.0 * n) for n in range(10)]
    assert all(result.value.clip.duration_s == pytest.approx(30.0) for result in results[1:-1])


def test_a_long_video_waits_for_the_ones_before_it(encoder, tmp_path):
    """Its segments stay in its process until they are wanted, and are not blamed for that."""
    paths = [save_video(tmp_path / f"{name}.mp4", 60) for name in "ab"]
    with pool(encoder, segment_s=1.0, timeout_s=1.0, num_frames=2) as workers:
        ahead = []
        results = []
        for result in workers.decode(map(candidate, paths)):
            results.append(result)
            if result.number == 0:
                ahead.append(workers._order.held(1))
            if len(results) == 10:
                time.sleep(1.5)
    assert 1 <= max(ahead) <= 2
    assert len(results) == 120
    assert all(isinstance(result.value, Decoded) for result in results)


def test_videos_that_cannot_be_used_are_skipped_with_reasons(encoder, tmp_path):
    good = save_video(tmp_path / "good.mp4", 2)
    bad = {"empty": b"", "damaged": good.read_bytes()[:300]}
    for reason, data in bad.items():
        (tmp_path / f"{reason}.mp4").write_bytes(data)
    paths = [tmp_path / "empty.mp4", good, tmp_path / "damaged.mp4", tmp_path / "missing.mp4"]
    with pool(encoder) as workers:
        values = [result.value for result in workers.decode(map(candidate, paths))]
    reasons = [value.reason if isinstance(value, Skip) else "good" for value in values]
    assert reasons == ["empty", "good", "damaged", "missing"]


def test_a_video_that_takes_too_much_memory_is_skipped(encoder, tmp_path):
    paths = [save_video(tmp_path / "a.mp4", 2), save_video(tmp_path / "b.mp4", 2, side=2000)]
    with pool(encoder, memory_bytes=24 * 2**20) as workers:
        values = [result.value for result in workers.decode(map(candidate, paths))]
    assert isinstance(values[0], Decoded)
    assert values[1].reason in ("out_of_memory", "decoder_crashed")


def test_reading_a_large_file_is_progress_and_takes_no_memory(encoder, tmp_path):
    """2 GiB of nothing: hashing it takes longer than the limit for a step."""
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:
        file.truncate(2 * 2**30)
    with pool(encoder, workers=1, timeout_s=0.7, memory_bytes=200 * 2**20) as workers:
        [result] = workers.decode(iter([candidate(path)]))
        took_s = workers.decode_s
    assert result.value.reason == "damaged"
    assert took_s > 0.7


def test_decoding_jpegs_on_a_gpu_is_for_pictures(encoder):
    with pytest.raises(InputError, match="--jpeg-decoder cpu"):
        pool(encoder, jpeg_decoder="gpu")
