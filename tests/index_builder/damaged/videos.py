"""Videos that are cut off, flipped, empty, mute, lying, or none at all."""

import io
import struct
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from PIL import Image

from tests.index_builder.damaged.case import Case, saved, scene

_BROKEN = frozenset({"damaged", "truncated", "no_video", "too_many_pixels", "out_of_memory"})
_NONE = frozenset({"no_video"})


def cases() -> Iterator[Case]:
    """All of them; those with pixels show in their first frame what `shows` says."""
    whole = {f"whole.{kind}": film(kind) for kind in ("mp4", "mkv", "avi", "mov", "mpg", "ts")}
    for name, data in whole.items():
        yield Case(name, data, shows=scene(40), tolerance=8.0)
        stem, suffix = name.split(".")
        for parts in (0, 1, 2, 5, 8, 12, 15):
            length = len(data) * parts // 16
            reasons = frozenset({"damaged", "truncated"} if parts else {"empty"})
            name = f"cut-{stem}-{length}.{suffix}"
            yield Case(name, data[:length], reasons, scene(40), judged=True, tolerance=8.0)
        for seed in range(5):
            rng = np.random.default_rng(seed)
            flipped = bytearray(data)
            for place in rng.integers(0, len(data), 1 + 4 * seed):
                flipped[place] ^= 1 << int(rng.integers(8))
            name = f"flip-{stem}-{seed}.{suffix}"
            yield Case(name, bytes(flipped), _BROKEN, scene(40), judged=True, tolerance=8.0)
    yield from _strange(whole["whole.mp4"])


def film(kind: str, *, frames: int = 25, sound: bool = False, picture: bool = True) -> bytes:
    """A short film of a still scene, with a beep or without pictures."""
    import av

    buffer = io.BytesIO()
    name = {"mkv": "matroska", "mpg": "mpeg", "ts": "mpegts"}.get(kind, kind)
    with av.open(buffer, "w", format=name) as container:
        if sound:
            track = container.add_stream("aac", rate=44_100)
        if picture:
            codec = "mpeg1video" if kind == "mpg" else "mpeg4"
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            stream.bit_rate = 2_000_000
            for _ in range(frames):
                frame = av.VideoFrame.from_ndarray(scene(40), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if sound:
            noise = av.AudioFrame.from_ndarray(
                np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
            )
            noise.sample_rate, noise.pts, noise.time_base = 44_100, 0, Fraction(1, 44_100)
            container.mux(track.encode(noise))
            container.mux(track.encode(None))
    return buffer.getvalue()


def _strange(whole: bytes) -> Iterator[Case]:
    moov = whole.index(b"moov") - 4
    yield Case("no-moov.mp4", whole[:moov], frozenset({"damaged"}))
    size = struct.unpack(">I", whole[moov : moov + 4])[0]
    yield Case("moov-alone.mp4", whole[:32] + whole[moov : moov + size], _BROKEN)
    yield Case("sound.mp4", film("mp4", sound=True, picture=False), _NONE)
    yield Case("sound.mkv", film("mkv", sound=True, picture=False), _NONE)
    stsz, stts = whole.index(b"stsz") + 12, whole.index(b"stts") + 8
    none = whole[:stsz] + bytes(4) + whole[stsz + 4 :]
    yield Case("no-frames.mp4", none[:stts] + bytes(4) + none[stts + 4 :], frozenset({"damaged"}))
    yield Case("one-frame.mp4", film("mp4", frames=1), shows=scene(40), tolerance=8.0)
    for box, skip in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        place = whole.index(box) + skip
        for name, value in (("long", 2**31 - 1), ("none", 0)):
            lying = whole[:place] + struct.pack(">I", value) + whole[place + 4 :]
            yield Case(f"{box.decode()}-{name}.mp4", lying, shows=scene(40), tolerance=8.0)
    place = whole.index(b"mp4v") + 4 + 24
    huge = whole[:place] + struct.pack(">HH", 65_000, 65_000) + whole[place + 4 :]
    yield Case("huge.mp4", huge, _BROKEN, scene(40), tolerance=8.0)
    other = {
        "text.mp4": b"I am no video\n" * 50,
        "picture.mp4": saved(Image.fromarray(scene(41)), "PNG"),
        "playlist.mp4": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "list.mp4": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "manifest.mp4": b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
        "zeros.mp4": bytes(100_000),
        "noise.mp4": np.random.default_rng(3).bytes(100_000),
        "noise.ts": np.random.default_rng(4).bytes(100_000),
        "noise.mpg": b"\x00\x00\x01\xba" + np.random.default_rng(5).bytes(100_000),
        "riff.avi": b"RIFF\xff\xff\xff\x7fAVI LIST" + bytes(5000),
        "ebml.mkv": b"\x1a\x45\xdf\xa3" + b"\xff" * 5000,
    }
    for name, data in other.items():
        yield Case(f"none-{name}", data, frozenset({"damaged", "no_video", "unsupported_format"}))
