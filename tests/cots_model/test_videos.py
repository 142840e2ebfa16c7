"""Frames of clips: the right ones, upright, of real and of broken files; and one vector for all."""

import io
import itertools
import json
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cots_model import video_track
from cots_model.errors import CotsError
from cots_model.video_track import MAX_SIDE, Track
from cots_model.videos import VideoError, decode_frame, decode_video, iter_clips, pool_frames
from tests.videos import (
    av,
    centre_numbers,
    numbers,
    picture_of,
    read_plainly,
    shown_plainly,
    write_clip,
)

H264 = {"crf": "5", "preset": "ultrafast", "bf": "3"}


def centres_of(clip) -> list[Fraction]:
    begin = Fraction(str(clip.start_s or 0))
    length = Fraction(str(clip.end_s or clip.duration_s)) - begin
    return [begin + length * (2 * i + 1) / 32 for i in range(16)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov", ".ts", ".flv"])
@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 50])
def test_an_even_clip_gives_the_frames_at_the_centres(tmp_path, suffix, count):
    if suffix == ".ts" and count < 16:
        pytest.skip("FFmpeg does not take so short a file for a transport stream")
    path = write_clip(tmp_path / f"a{suffix}", count, codec="flv1" if suffix == ".flv" else "mpeg4")
    [clip] = iter_clips(path)
    assert numbers(clip.frames) == centre_numbers(count)
    assert clip.times_s == tuple(number / 10 for number in centre_numbers(count))
    assert (clip.start_s, clip.end_s, clip.duration_s) == (None, None, count / 10)
    assert {img.size for img in clip.frames} == {(64, 48)}
    assert all(np.asarray(img)[0].min() > 240 for img in clip.frames)
    with path.open("rb") as file:
        [again] = iter_clips(file, num_frames=2)
    assert numbers(again.frames) == centre_numbers(count, 2)


@pytest.mark.parametrize("count", [1, 3, 16, 50])
def test_decode_video_gives_every_frame_once(tmp_path, count):
    path = write_clip(tmp_path / "a.mp4", count)
    expected = sorted(set(centre_numbers(count)))
    assert numbers(decode_video(path)) == expected
    assert numbers(decode_video(path, num_frames=1)) == [count // 2]


COMMON = [
    ("a.mp4", "libx264", H264),
    ("b.mp4", "libx264", H264 | {"x264-params": "open-gop=1:bframes=3:b-pyramid=1"}),
    ("c.mkv", "libx264", H264),
    ("d.ts", "libx264", H264),
    ("e.flv", "libx264", H264),
    ("f.mpg", "mpeg2video", {"bf": "2", "qscale": "2"}),
    ("g.avi", "mpeg4", {"bf": "2", "qscale": "2"}),
    ("h.webm", "libvpx-vp9", {"crf": "4", "b": "1M", "deadline": "realtime", "cpu-used": "8"}),
    ("i.mp4", "libx265", {"crf": "5", "preset": "ultrafast", "x265-params": "log-level=none"}),
    ("j.mov", "mjpeg", None),
]


@pytest.mark.parametrize(("name", "codec", "options"), COMMON)
def test_jumping_gives_the_frames_that_decoding_everything_gives(
    tmp_path, decoded, name, codec, options
):
    """Also with frames stored out of order, and where a jump lands too late."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = write_clip(tmp_path / name, 600, codec=codec, options=options)
    [clip] = iter_clips(path)
    assert numbers(clip.frames) == centre_numbers(600)
    assert clip.duration_s == pytest.approx(60, abs=0.11)
    if not name.endswith(".mpg"):
        assert len(decoded) < 450
    segments = list(iter_clips(path, segment_s=7))
    found = [number for segment in segments for number in numbers(segment.frames)]
    expected = [shown_plainly(path, centres_of(segment)) for segment in segments]
    assert found == list(itertools.chain(*expected))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_uneven_frames_count_by_the_time_they_are_shown(tmp_path, suffix):
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.choice([40, 80, 4000], 60, p=[0.5, 0.4, 0.1])).tolist()
    codec = "libvpx" if suffix == ".webm" else "libx264"
    path = write_clip(
        tmp_path / f"a{suffix}",
        60,
        codec=codec,
        options={"deadline": "realtime"} if suffix == ".webm" else H264,
        times=times,
        time_base=Fraction(1, 1000),
    )
    [clip] = iter_clips(path)
    assert numbers(clip.frames) == shown_plainly(path, centres_of(clip))
    begins = [(time - times[0]) / 1000 for time in times]
    for centre, time in zip(centres_of(clip), clip.times_s, strict=True):
        assert time == pytest.approx(max(b for b in begins if b <= centre), abs=1e-6)
    assert len(set(clip.times_s)) < 16  # a frame that is shown for long comes again


@pytest.mark.parametrize("first", [-3000, 7000, 500_000])
def test_times_count_from_the_first_frame(tmp_path, first):
    times = [first + 100 * n for n in range(40)]
    path = write_clip(tmp_path / "a.mkv", 40, times=times, time_base=Fraction(1, 1000))
    [clip] = iter_clips(path)
    assert numbers(clip.frames) == centre_numbers(40)
    assert clip.times_s == tuple(number / 10 for number in centre_numbers(40))
    assert clip.duration_s == pytest.approx(4, abs=0.05)
    assert numbers([decode_frame(path, 2.0)]) == [20]


def test_frames_are_turned_upright(tmp_path):
    """A clip of 64 x 48 whose header says that it is lying on its side."""
    stream_type = type(av.open(str(write_clip(tmp_path / "a.mp4", 1))).streams.video[0])
    if not hasattr(stream_type, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    with (
        av.open(str(tmp_path / "a.mp4")) as source,
        av.open(str(tmp_path / "b.mp4"), "w") as target,
    ):
        copy = target.add_stream_from_template(source.streams.video[0])
        copy.set_display_rotation(90)
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    (frame,) = decode_video(tmp_path / "b.mp4")
    assert frame.size == (48, 64)
    assert np.asarray(frame)[:, 0].min() > 240  # the top has become the left: counterclockwise


def test_large_frames_are_made_smaller(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 2, size=(2 * MAX_SIDE, 96))
    assert decode_video(path)[1].size == (MAX_SIDE, 48)


@pytest.mark.parametrize(
    ("count", "segment_s", "bounds"),
    [
        (100, 20.0, [None]),
        (100, 10.0, [None]),
        (100, 4.0, [(0, 4), (4, 8), (8, 10)]),
        (95, 4.0, [(0, 4), (4, 9.5)]),  # a rest of less than half goes to the one before
        (55, 4.0, [None]),
        (60, 4.0, [(0, 4), (4, 6)]),
        (30, 0.7, [(0, 0.7), (0.7, 1.4), (1.4, 2.1), (2.1, 3)]),
    ],
)
def test_segments_follow_each_other(tmp_path, count, segment_s, bounds):
    clips = list(iter_clips(write_clip(tmp_path / "a.mp4", count), segment_s=segment_s))
    found = [None if clip.start_s is None else (clip.start_s, clip.end_s) for clip in clips]
    assert found == bounds
    assert {clip.duration_s for clip in clips} == {count / 10}
    for clip in clips:
        assert len(clip.frames) == len(clip.times_s) == 16
        assert numbers(clip.frames) == [round(10 * time) for time in clip.times_s]
        begin, end = clip.start_s or 0, clip.end_s or clip.duration_s
        assert begin - 0.1 < clip.times_s[0]
        assert clip.times_s[-1] < end


def test_segments_in_which_nothing_new_is_shown_are_left_out(tmp_path):
    """The last frame comes after ten years."""
    times = [*range(0, 1000, 100), 10 * 365 * 86_400_000]
    base = Fraction(1, 1000)
    path = write_clip(tmp_path / "a.mkv", 11, codec="mjpeg", times=times, time_base=base)
    assert read_plainly(path)[-1][0] > 10**8
    starts = [clip.start_s for clip in iter_clips(path, segment_s=0.5)]
    assert starts[:2] == [0.0, 0.5]
    assert len(starts) <= 3
    assert len(list(iter_clips(path))) == 1


def test_a_film_is_not_decoded_whole(tmp_path, decoded):
    path = write_clip(tmp_path / "a.mp4", 4000, gop=20, codec="libx264", options=H264)
    [clip] = iter_clips(path)
    assert numbers(clip.frames) == centre_numbers(4000)
    assert len(decoded) < 16 * 30
    decoded.clear()
    assert numbers([decode_frame(path, 333.3)]) == [3333]
    assert len(decoded) < 50


def test_a_film_without_keyframes_is_decoded_hardly_more_than_once(tmp_path, decoded):
    path = write_clip(tmp_path / "a.mp4", 1000, gop=5000)
    [clip] = iter_clips(path)
    assert numbers(clip.frames) == centre_numbers(1000)
    assert len(decoded) < 1300


@pytest.mark.parametrize(
    "seek",
    [
        lambda seek, track, ticks: False,
        lambda seek, track, ticks: seek(track, ticks + track.ticks_in(9)),
        lambda seek, track, ticks: seek(track, 0),
        lambda seek, track, ticks: seek(track, 10**12),
    ],
)
def test_where_a_file_cannot_be_searched_it_is_decoded_on(tmp_path, monkeypatch, seek):
    path = write_clip(tmp_path / "a.mkv", 400)
    right = Track.seek
    monkeypatch.setattr(Track, "seek", lambda self, ticks: seek(right, self, ticks))
    [clip] = iter_clips(path)
    assert numbers(clip.frames) == centre_numbers(400)
    assert clip.duration_s == 40


def test_a_frame_at_a_time(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 50)
    [clip] = iter_clips(path)
    for time in clip.times_s:
        assert numbers([decode_frame(path, time)]) == [round(time * 10)]
    for time, number in ((-3.0, 0), (0.0, 0), (0.0999, 0), (0.1, 1), (4.99, 49), (1e9, 49)):
        assert numbers([decode_frame(path, time)]) == [number]


class Clocked(io.BytesIO):
    """Each read moves the clock on by a second."""

    def __init__(self, data: bytes, monkeypatch) -> None:
        super().__init__(data)
        self.now_s = 0.0
        self.num_reads = 0
        monkeypatch.setattr(video_track, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def read(self, size: int = -1) -> bytes:
        self.now_s += 1
        self.num_reads += 1
        return super().read(size)


def test_whatever_takes_long_of_a_frame_is_given_up(tmp_path, monkeypatch):
    """While the file is opened, searched, or passed over."""
    options = {"sc_threshold": "1000000000"}
    data = write_clip(tmp_path / "a.mkv", 900, gop=1000, options=options).read_bytes()
    with monkeypatch.context() as patched:
        whole = Clocked(data, patched)
        decode_frame(whole, 80, until_s=1e9)
    assert whole.num_reads > 5
    for until_s in range(whole.num_reads):
        with monkeypatch.context() as patched:
            file = Clocked(data, patched)
            with pytest.raises(VideoError) as caught:
                decode_frame(file, 80, until_s=until_s)
        assert caught.value.reason == "timeout"
        assert file.num_reads <= until_s + 1


def test_small_packets_do_not_outlive_the_limit(tmp_path, monkeypatch):
    """One read can hold thousands: time is looked at for each."""
    path = write_clip(tmp_path / "a.mkv", 300, gop=1000, paint=lambda _, size: picture_of(0, size))
    file = io.BytesIO(path.read_bytes())
    now_s = [0.0]
    monkeypatch.setattr(video_track, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    real = video_track.Track._decode

    def slow(self, packet):
        now_s[0] += 1
        return real(self, packet)[:0]  # none of these can be used

    monkeypatch.setattr(video_track.Track, "_decode", slow)
    with pytest.raises(VideoError) as caught:
        decode_frame(file, 20, until_s=10)
    assert caught.value.reason == "timeout"
    assert now_s[0] < 13


def test_without_pyav_the_cure_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CotsError, match="pip install av"):
        decode_video(io.BytesIO(b""))


@pytest.mark.parametrize("counts", [[2, 2, 2], [1, 4, 1], [6]])
def test_a_video_is_the_normalised_mean_of_its_frames(counts):
    torch.manual_seed(0)
    frame_FE = torch.nn.functional.normalize(torch.randn(6, 5), dim=1).requires_grad_()
    pooled_NE = pool_frames(frame_FE, counts)
    at = 0
    for row, count in enumerate(counts):
        mean_E = frame_FE[at : at + count].sum(0) / count
        torch.testing.assert_close(pooled_NE[row], mean_E / mean_E.norm())
        at += count
    pooled_NE.sum().backward()
    assert frame_FE.grad.abs().sum() > 0


def test_real_clips_give_16_different_frames(shared_data):
    folder = shared_data / "videos"
    names = [entry["video"] for entry in json.loads((folder / "captions.json").read_text())]
    for name in names[:6]:
        frames = decode_video(folder / name)
        assert len(frames) == 16
        assert len({img.tobytes() for img in frames}) > 8, name
