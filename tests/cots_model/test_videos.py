"""Frames of clips: the right ones, upright, of real and of broken files; and one vector for all."""

import io
import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from cots_model.errors import CotsError
from cots_model.videos import VideoError, decode_video, pool_frames


def frame_indices(n,f):
    return list(range(n)) if n<=f else [(2 * i + 1) * n // (2 * f) for i in range(f)]

av = pytest.importorskip("av", reason="PyAV is not installed; pip install 'cots-retrieval[video]'")


def write_clip(path, num_frames, *, size=(64, 48), codec="mpeg4", format_=None, audio=False):
    """A clip whose frame n shows n in bits, columns black or white, under a white stripe."""
    with av.open(str(path), "w", format=format_) as container:
        if audio:
            sound = container.add_stream("aac", rate=44_100)
        else:
            stream = container.add_stream(codec, rate=Fraction(10))
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.options = {"qscale": "2"}
            for number in range(num_frames):
                bits = [255 * (number >> bit & 1) for bit in range(8)]
                row = np.repeat(np.array(bits, np.uint8), size[0] // 8)
                pixels = np.tile(row[None, :, None], (size[1], 1, 3))
                pixels[: size[1] // 3] = 255
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if audio:
            samples = np.zeros((1, 4096), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
            frame.sample_rate = 44_100
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def numbers(frames) -> list[int]:
    """What each frame shows below its stripe, read in the middle of the columns."""
    rows = [np.asarray(img)[-6].mean(-1)[img.width // 16 :: img.width // 8] for img in frames]
    return [sum(1 << bit for bit in range(8) if row[bit] > 128) for row in rows]


@pytest.mark.parametrize(
    ("available", "wanted", "expected"),
    [
        (4, 16, [0, 1, 2, 3]),
        (16, 16, list(range(16))),
        (17, 16, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16]),
        (32, 16, list(range(1, 32, 2))),
        (160, 4, [20, 60, 100, 140]),
        (5, 1, [2]),
        (0, 16, []),
    ],
)
def test_frames_are_at_the_centres_of_equal_segments(available, wanted, expected):
    assert frame_indices(available, wanted) == expected


def test_centres_lie_in_their_segments():
    for available in range(16, 400):
        indices = frame_indices(available, 16)
        for number, index in enumerate(indices):
            centre = (number + 0.5) * available / 16
            assert index <= centre < index + 1


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
@pytest.mark.parametrize("count", [3, 16, 50])
def test_a_clip_gives_the_frames_of_these_numbers(tmp_path, suffix, count):
    path = write_clip(tmp_path / f"a{suffix}", count)
    frames = decode_video(path)
    assert numbers(frames) == frame_indices(count, 16)
    assert {img.size for img in frames} == {(64, 48)}
    assert all(np.asarray(img)[0].min() > 240 for img in frames)
    with path.open("rb") as file:
        again = decode_video(file, num_frames=2)
    assert numbers(again) == frame_indices(count, 2)


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


def test_a_truncated_clip_gives_what_there_is(tmp_path):
    data = write_clip(tmp_path / "a.mkv", 50).read_bytes()
    frames = decode_video(io.BytesIO(data[: len(data) * 2 // 3]))
    assert 0 < len(frames) <= 16
    assert numbers(frames)[-1] < 40


def playlist(tmp_path) -> bytes:
    clip = write_clip(tmp_path / "secret.mp4", 4)
    return f"ffconcat version 1.0\nfile '{clip}'\n".encode()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: b"", "damaged"),
        (lambda folder: b"no video at all" * 100, "damaged"),
        (lambda folder: write_clip(folder / "a.mp4", 50).read_bytes()[:300], "damaged"),
        (lambda folder: write_clip(folder / "a.mp4", 0, audio=True).read_bytes(), "no_video"),
        (playlist, "damaged"),
    ],
)
def test_bad_files_are_refused(tmp_path, make, reason):
    with pytest.raises(VideoError) as caught:
        decode_video(io.BytesIO(make(tmp_path)))
    assert caught.value.reason == reason


def test_large_frames_and_missing_files_are_refused(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 2)
    with pytest.raises(VideoError, match="64 x 48; at most 3,000 pixels") as caught:
        decode_video(path, max_pixels=3_000)
    assert caught.value.reason == "too_many_pixels"
    with pytest.raises(VideoError, match=r"b\.mp4 cannot be read \(No such file"):
        decode_video(tmp_path / "b.mp4")


def test_without_pyav_the_cure_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CotsError, match=r"pip install 'cots-retrieval\[video\]'"):
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
