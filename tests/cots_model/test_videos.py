"""Frames of clips: the right ones, upright, of real and of broken files; and one vector for all."""

import io
import itertools
import json
import pickle
import struct
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cots_model import video_track
from cots_model.errors import CotsError, InputError
from cots_model.video_track import MAX_SIDE, Track
from cots_model.videos import VideoError, decode_frame, decode_video, iter_clips, pool_frames
from tests.videos import av, numbers, picture_of, read_plainly, shown_plainly, write_clip

H264 = {"crf": "5", "preset": "ultrafast", "bf": "3"}


def centre_numbers(num_available: int, num_frames: int = 16) -> list[int]:
    """Which frames of an even clip are shown at the centres."""
    return [(2 * i + 1) * num_available // (2 * num_frames) for i in range(num_frames)]


def centres_of(clip) -> list[Fraction]:
    begin = Fraction(str(clip.start_s or 0))
    length = Fraction(str(clip.end_s or clip.duration_s)) - begin
    return [begin + length * (2 * i + 1) / 32 for i in range(16)]


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by one for every frame that is decoded."""
    found: list[int] = []
    decode = Track._decode

    def count(self, packet):
        pictures = decode(self, packet)
        found.extend(1 for _ in pictures)
        return pictures

    monkeypatch.setattr(Track, "_decode", count)
    return found


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


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.mp4"])
@pytest.mark.parametrize("share", [0.3, 0.67, 0.95])
def test_a_truncated_clip_gives_what_there_is(tmp_path, name, share):
    muxer = {"movflags": "faststart"} if name == "a.mp4" else None
    data = write_clip(tmp_path / name, 300, muxer=muxer).read_bytes()
    cut = data[: int(len(data) * share)]
    [clip] = iter_clips(io.BytesIO(cut))
    shown = numbers(clip.frames)
    assert shown == sorted(shown)
    assert 16 * 0.8 < len(set(shown)) <= 16
    assert 300 * share * 0.6 < shown[-1] < 300 * share * 1.15
    assert clip.duration_s < 30 * share * 1.2
    assert 1 < len(list(iter_clips(io.BytesIO(cut), segment_s=2))) <= 30 * share / 2 + 2


@pytest.mark.parametrize(
    ("name", "codec", "muxer"),
    [
        ("a.mkv", "mpeg4", {"live": "1"}),
        ("a.webm", "libvpx", {"live": "1"}),
        ("a.mp4", "mpeg4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.m2v", "mpeg2video", None),
    ],
)
def test_a_clip_that_does_not_tell_its_length(tmp_path, name, codec, muxer):
    """As streams are saved; the last has no times either."""
    out = io.BytesIO()
    path = write_clip(tmp_path / name, 60, codec=codec, muxer=muxer, options={"qscale": "2"})
    out.write(path.read_bytes())
    with av.open(io.BytesIO(out.getvalue())) as container:
        stream = container.streams.video[0]
        if "live" in (muxer or {}):
            assert not stream.duration
    [clip] = iter_clips(out)
    assert clip.duration_s == pytest.approx(6, abs=0.2)
    assert numbers(clip.frames) == pytest.approx(centre_numbers(60), abs=1)


@pytest.mark.parametrize("claimed_s", [0.1, 7200.0, 400_000.0])
def test_a_length_that_is_a_lie_is_not_believed(tmp_path, claimed_s):
    data = bytearray(write_clip(tmp_path / "a.mp4", 60).read_bytes())
    for box in (b"mdhd", b"mvhd"):
        at = data.index(box) + 4 + 12  # version and flags, two dates
        (scale,) = struct.unpack(">I", data[at : at + 4])
        data[at + 4 : at + 8] = struct.pack(">I", min(int(claimed_s * scale), 2**32 - 1))
    [clip] = iter_clips(io.BytesIO(bytes(data)))
    assert clip.duration_s == 6
    assert numbers(clip.frames) == centre_numbers(60)


def test_damage_in_the_middle_is_passed_over(tmp_path):
    data = bytearray(write_clip(tmp_path / "a.mkv", 300, gop=10).read_bytes())
    third = len(data) // 3
    data[third : third + 2000] = bytes(2000)
    [clip] = iter_clips(io.BytesIO(bytes(data)))
    shown = numbers(clip.frames)
    assert clip.duration_s == 30
    assert shown[:4] == centre_numbers(300)[:4]
    assert shown[-4:] == centre_numbers(300)[-4:]


def with_cover(path, *, video: bool) -> bytes:
    """Sound, or a clip, with a picture of its cover."""
    with av.open(str(path), "w") as container:
        if video:
            stream = container.add_stream("mpeg4", rate=Fraction(10))
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        else:
            sound = container.add_stream("mp3" if path.suffix == ".mp3" else "aac", rate=44_100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 160, 96, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture_of(0, (160, 96)), format="rgb24")
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
        if video:
            for number in range(5):
                frame = av.VideoFrame.from_ndarray(picture_of(number), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        else:
            layout = sound.codec_context.layout.name
            planes = np.zeros((2 if layout == "stereo" else 1, 4608), np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate = 44_100
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path.read_bytes()


def test_a_cover_is_not_the_video(tmp_path):
    assert numbers(decode_video(io.BytesIO(with_cover(tmp_path / "a.mp4", video=True)))) == [
        *range(5)
    ]


def test_the_best_of_several_tracks_is_taken(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("mpeg4", rate=Fraction(10)) for _ in range(2)]
        for stream, size in zip(streams, ((64, 48), (128, 96)), strict=True):
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.bit_rate = 64_000 * size[0]
        for number in range(20):
            for stream, shown in zip(streams, (number, number + 100), strict=True):
                pixels = picture_of(shown, (stream.width, stream.height))
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    with av.open(str(tmp_path / "a.mkv")) as container:
        best = container.streams.best("video")
    [clip] = iter_clips(tmp_path / "a.mkv")
    assert clip.frames[0].size == (best.width, best.height)


def playlist(tmp_path) -> bytes:
    clip = write_clip(tmp_path / "secret.mp4", 4)
    return f"ffconcat version 1.0\nfile '{clip}'\n".encode()


def hls(tmp_path) -> bytes:
    clip = write_clip(tmp_path / "secret.ts", 4)
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n".encode()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: b"", "damaged"),
        (lambda folder: b"no video at all" * 100, "damaged"),
        (lambda folder: write_clip(folder / "a.mp4", 50).read_bytes()[:300], "damaged"),
        (lambda folder: write_clip(folder / "a.mp4", 50).read_bytes()[:-800], "damaged"),
        (lambda folder: write_clip(folder / "a.mkv", 50).read_bytes()[:300], "damaged"),
        (lambda folder: write_clip(folder / "a.mp4", 0, audio=True).read_bytes(), "no_video"),
        (lambda folder: with_cover(folder / "b.mp4", video=False), "no_video"),
        (lambda folder: with_cover(folder / "a.mp3", video=False), "no_video"),
        (playlist, "damaged"),
        (hls, "damaged"),
    ],
)
def test_bad_files_are_refused(tmp_path, make, reason):
    data = make(tmp_path)
    for read in (
        decode_video,
        lambda file: decode_frame(file, 1),
        lambda file: [*iter_clips(file)],
    ):
        with pytest.raises(VideoError) as caught:
            read(io.BytesIO(data))
        assert caught.value.reason == reason
    assert str(tmp_path) not in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason  # noqa: S301


def test_large_frames_are_refused_before_one_is_decoded(tmp_path, decoded):
    path = write_clip(tmp_path / "a.mp4", 2)
    with pytest.raises(VideoError, match="64 x 48; at most 3,000 pixels") as caught:
        decode_video(path, max_pixels=3_000)
    assert caught.value.reason == "too_many_pixels"
    assert not decoded
    assert decode_video(path, max_pixels=64 * 48)


def test_frames_that_grow_too_large_are_not_decoded(tmp_path):
    """Two raw streams in one: the header tells of the first alone."""
    small = write_clip(tmp_path / "a.m2v", 10, codec="mpeg2video").read_bytes()
    large = write_clip(tmp_path / "b.m2v", 10, codec="mpeg2video", size=(640, 480)).read_bytes()
    sizes = {img.size for img in decode_video(io.BytesIO(small + large))}
    assert sizes == {(64, 48), (640, 480)}
    sizes = {img.size for img in decode_video(io.BytesIO(small + large), max_pixels=10_000)}
    assert sizes == {(64, 48)}


def test_what_cannot_be_read_is_told_apart_from_damage(tmp_path):
    with pytest.raises(VideoError, match=r"b\.mp4 cannot be read \(No such file") as caught:
        decode_video(tmp_path / "b.mp4")
    assert caught.value.reason == "unreadable"

    class Broken(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 9_000:
                raise OSError(5, "the network is gone")
            return super().read(size)

    data = write_clip(tmp_path / "a.mkv", 300).read_bytes()
    with pytest.raises(VideoError, match="the network is gone") as caught:
        decode_video(Broken(data))
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("options", [{"num_frames": 0}, {"segment_s": 0.0}, {"segment_s": -1.0}])
def test_numbers_without_meaning_are_refused(tmp_path, options):
    with pytest.raises(InputError, match="above 0"):
        next(iter_clips(tmp_path / "a.mp4", **options))


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


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bits flipped, a stretch zeroed, doubled or cut off."""
    changed = bytearray(data)
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 2000))
    match rng.integers(4):
        case 0:
            for place in rng.integers(len(data), size=int(rng.choice([1, 20, 400]))):
                changed[place] ^= 1 << rng.integers(8)
        case 1:
            changed[at : at + length] = bytes(length)
        case 2:
            changed[at:at] = changed[:length]
        case 3:
            del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".mpg"])
def test_damaged_files_give_whole_clips_or_a_reason(tmp_path, suffix):
    codec = "mpeg2video" if suffix == ".mpg" else "mpeg4"
    data = write_clip(tmp_path / f"a{suffix}", 40, codec=codec).read_bytes()
    rng = np.random.default_rng(5)
    read, reasons = 0, set()
    for _ in range(60):
        try:
            clips = list(iter_clips(io.BytesIO(mutated(data, rng)), segment_s=1))
        except VideoError as err:
            reasons.add(err.reason)
            continue
        read += 1
        for clip in clips:
            assert len(clip.frames) == len(clip.times_s) == 16
            assert clip.times_s[0] >= 0
            assert list(clip.times_s) == sorted(clip.times_s)
            assert (clip.start_s or 0) < (clip.end_s or clip.duration_s) <= clip.duration_s
    assert read > 10
    assert reasons <= {"damaged", "no_video", "too_many_pixels"}
