"""Video files that are cut off, damaged, foreign or hostile: what there is, or a reason."""

import io
import pickle
import struct
from fractions import Fraction

import numpy as np
import pytest

from cots_model.errors import InputError
from cots_model.videos import VideoError, decode_frame, decode_video, iter_clips
from tests.videos import av, centre_numbers, numbers, picture_of, write_clip

H264 = {"crf": "5", "preset": "ultrafast", "bf": "3"}


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
