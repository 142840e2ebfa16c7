"""Parts of texts and of videos: batches across items, segments, frames, and bad vectors."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cots_model.encoder import Encoder
from cots_model.videos import NUM_FRAMES
from index_builder.build import Run, finish_run
from index_builder.content import Location, Stamp
from index_builder.delete import delete_items
from index_builder.encode import PartEncoder
from index_builder.gallery import Gallery
from index_builder.lock import builder_lock
from index_builder.manifest import FRAME_TIMES_FILE, FRAMES_FILE
from index_builder.options import BuildOptions, UpdateOptions
from index_builder.part_builder import PartBuilder
from index_builder.pipeline.result import Clip, Decoded, Result
from index_builder.progress import Progress
from index_builder.publish import version_folder
from index_builder.sources.entry import Candidate, ReaderCounts, Skip
from index_builder.update import update_gallery
from index_builder.verify import verify_gallery


class ListSource:
    """A source of given entries."""

    name = "entries"
    roots = ()

    def __init__(self, entries: list[Candidate | Skip]) -> None:
        self.entries = entries
        self.counts = ReaderCounts()

    def read(self) -> Iterator[Candidate | Skip]:
        return iter(self.entries)


def build_from(entries, root: Path, encoder: Encoder, **options):
    settings = {"batch_size": 24, "part_items": 3, "workers": 1, **options}
    options = BuildOptions(sources=("entries",), gallery=root, **settings)
    with builder_lock(root):
        return finish_run(Run(options, encoder, ListSource(entries), None, Progress()))


def candidate(name: str, **fields) -> Candidate:
    return Candidate(name, f"file:///{name}", Location(f"/{name}"), name, **fields)


def clip_pixels(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((NUM_FRAMES, 3, 32, 32)).astype(np.float32)


def decoded(one: Candidate, seed: int, start_s: float | None = None) -> Decoded:
    times = tuple((start_s or 0.0) + 0.5 + frame for frame in range(NUM_FRAMES))
    end_s = None if start_s is None else start_s + 16
    clip = Clip(times, start_s, end_s, duration_s=40.0)
    return Decoded(one, Stamp(9, 1.5), f"{seed:064x}", clip_pixels(seed), clip)


def expected_frames(encoder: Encoder, seed: int) -> np.ndarray:
    return encoder.encode_pixels(torch.from_numpy(clip_pixels(seed)))


@pytest.mark.parametrize("batch_size", [1, 5, 16, 24, 64])
def test_part_of_videos_has_mean_vectors_frames_and_times(encoder, batch_size):
    part = PartEncoder(encoder, modality="video", batch_size=batch_size)
    one, two = candidate("one"), candidate("two")
    part.add(0, decoded(one, 1))
    part.skip(1, Skip("bad", "file:///bad", "no_video", "x"))
    part.add(2, decoded(two, 2, start_s=0.0))
    part.add(2, decoded(two, 3, start_s=16.5))
    rows = part.finish()
    assert [item.id for item in rows.items] == ["one", "two#t=0,16", "two#t=16.5,32.5"]
    assert list(rows.offsets) == [0, 2, 2]
    assert [(offset, skip.id) for offset, skip in rows.skips] == [(1, "bad")]
    assert (rows.items[0].start_s, rows.items[0].duration_s) == (None, 40.0)
    assert (rows.items[2].start_s, rows.items[2].end_s) == (16.5, 32.5)
    for row, seed in enumerate((1, 2, 3)):
        frames_FE = expected_frames(encoder, seed)
        mean_E = frames_FE.mean(axis=0)
        np.testing.assert_allclose(rows.vectors_NE[row], mean_E / np.linalg.norm(mean_E), atol=1e-5)
        np.testing.assert_allclose(rows.frames_NFE[row], frames_FE, atol=1e-3)
    assert rows.times_NF[2].tolist() == [17.0 + frame for frame in range(NUM_FRAMES)]


def test_part_skips_an_item_with_one_bad_frame_and_keeps_its_neighbours(encoder, monkeypatch):
    encode = Encoder.encode_pixels

    def spoil(self: Encoder, img_BCHW: torch.Tensor) -> np.ndarray:
        z_BE = encode(self, img_BCHW)
        z_BE[(img_BCHW[:, 0, 0, 0] == 7).numpy()] = np.nan
        return z_BE

    monkeypatch.setattr(Encoder, "encode_pixels", spoil)
    part = PartEncoder(encoder, modality="video", batch_size=24)
    for offset in range(3):
        one = decoded(candidate(f"v{offset}"), offset)
        if offset == 1:
            one.pixels_U[11, 0, 0, 0] = 7
        part.add(offset, one)
    rows = part.finish()
    assert [item.id for item in rows.items] == ["v0", "v2"]
    [(offset, skip)] = rows.skips
    assert (offset, skip.id, skip.reason) == (1, "v1", "bad_embedding")
    np.testing.assert_allclose(rows.frames_NFE[1], expected_frames(encoder, 2), atol=1e-3)


CHANGED = Stamp(10, 2.5)


class FakePool:
    """Gives what decoding would: for `longN` three segments, and for `long2` and `bad` a skip."""

    decode_s = read_s = 0.0
    decoded: list[str] = []

    def __init__(self, preprocess: object, **settings: object) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def decode(self, entries: Iterator[Candidate | Skip]) -> Iterator[Result]:
        for number, entry in enumerate(entries):
            if isinstance(entry, Skip):
                yield Result(number, entry)
                continue
            seed = number * 10 + (1000 if entry.stamp == CHANGED else 0)
            self.decoded.append(entry.id)
            if entry.id.startswith("long"):
                for segment in range(3):
                    value = decoded(entry, seed + segment, start_s=segment * 16.0)
                    yield Result(number, value, last=segment == 2 and entry.id == "long1")
                if entry.id == "long2":
                    yield Result(number, Skip(entry.id, entry.uri, "truncated", "x"))
            elif entry.id == "bad":
                yield Result(number, Skip(entry.id, entry.uri, "no_video", "x"))
            else:
                yield Result(number, decoded(entry, seed))


@pytest.fixture
def videos(monkeypatch) -> list[Candidate | Skip]:
    monkeypatch.setattr("index_builder.part_builder.DecodePool", FakePool)
    FakePool.decoded = []
    stamp = Stamp(9, 1.5)
    names = ["long1", "short", "bad", "long2", "z"]
    listed = [candidate(name, stamp=stamp, metadata={"of": name}) for name in names]
    return [*listed[:2], Skip("x.heic", "file:///x.heic", "unsupported_format", "y"), *listed[2:]]


def test_gallery_of_videos_has_segments_and_their_frames(videos, encoder, tmp_path):
    report = build_from(videos, tmp_path / "g", encoder, modality="video", segment_seconds=16)
    assert (report.count, report.parts) == (8, 2)
    gallery = Gallery.open(tmp_path / "g")
    assert gallery.ids() == [
        *(f"long{n}#t={s}" for n in (1, 2) for s in ("0,16", "16,32", "32,48")),
        "short",
        "z",
    ]
    folder = version_folder(tmp_path / "g", gallery.version)
    frames_NFE, times_NF = np.load(folder / FRAMES_FILE), np.load(folder / FRAME_TIMES_FILE)
    assert (frames_NFE.dtype, times_NF.dtype) == (np.float16, np.float64)
    row = gallery.row("long2#t=16,32")
    np.testing.assert_allclose(frames_NFE[row], expected_frames(encoder, 41), atol=1e-3)
    assert times_NF[row][0] == 16.5
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    ids = [json.loads(line)["id"] for line in lines]
    assert ids == ["x.heic", "bad", "long2"]
    assert not any(verify_gallery(tmp_path / "g").values())


def test_verify_notices_frames_of_another_video(videos, encoder, tmp_path):
    from tests.index_builder.test_gallery import republish

    build_from(videos, tmp_path / "g", encoder, modality="video")
    [path] = tmp_path.glob("g/versions/*/frames.npy")
    np.save(path, np.load(path)[::-1].copy())
    republish(tmp_path / "g")
    problems = verify_gallery(tmp_path / "g")
    assert [name for name, problem in problems.items() if problem] == ["frames.npy"]


def test_update_takes_over_all_segments_of_an_unchanged_video(
    videos, encoder, tmp_path, monkeypatch
):
    root = tmp_path / "g"
    build_from(videos, root, encoder, modality="video", segment_seconds=16)
    before = Gallery.open(root)
    folder = version_folder(root, before.version)
    frames_NFE = np.load(folder / FRAMES_FILE)
    FakePool.decoded = []
    changed = [
        candidate(v.id, stamp=CHANGED) if v.id == "long2" else v for v in videos if v.id != "z"
    ]
    monkeypatch.setattr("index_builder.build.open_source", lambda *_, **__: ListSource(changed))
    report = update_gallery(UpdateOptions(gallery=root, workers=1), encoder)
    assert FakePool.decoded == ["bad", "long2"]
    assert (report.count, report.unchanged, report.missing) == (8, 2, 1)
    after = Gallery.open(root)
    assert after.ids() == before.ids()
    new_NFE = np.load(version_folder(root, after.version) / FRAMES_FILE)
    same = [bool(np.array_equal(new_NFE[row], frames_NFE[row])) for row in range(8)]
    assert same == [True] * 3 + [False] * 3 + [True] * 2
    assert not any(verify_gallery(root).values())

    assert delete_items(root, ["long1", "long2#t=0,16"]).deleted == 4
    report = update_gallery(UpdateOptions(gallery=root, workers=1), encoder)
    assert Gallery.open(root).ids() == ["long2#t=16,32", "long2#t=32,48", "short", "z"]
    assert report.skipped == {"no_video": 1, "truncated": 1, "unsupported_format": 1}


def test_gallery_of_texts_searches_and_serves_them(encoder, tmp_path):
    texts = ["a dog in the snow", "two cats", "ein Hund", "a dog in the snow"]
    entries = [candidate(f"t{n}", text=text) for n, text in enumerate(texts)]
    entries.insert(1, Skip("", "file:///t", "empty", "a text is empty"))
    root = tmp_path / "g"
    report = build_from(entries, root, encoder, modality="text", batch_size=2)
    assert (report.count, report.skipped) == (4, {"empty": 1})
    gallery = Gallery.open(root)
    np.testing.assert_allclose(
        gallery.vectors.rows(np.arange(4)), encoder.encode_texts(texts), atol=1e-5
    )
    item = gallery.item(2)
    assert (item.text, item.size_bytes) == ("ein Hund", 8)
    assert gallery.read_content(2) == gallery.open_content(2).read() == b"ein Hund"
    scores, rows = gallery.search(encoder.encode_texts(["a dog in the snow"]), 2)
    assert rows.tolist() == [[0, 3]]
    np.testing.assert_allclose(scores, 1.0, atol=1e-5)
    assert not any(verify_gallery(root).values())


def test_part_builder_can_be_used_in_another_process(encoder, tmp_path):
    import pickle

    from index_builder.listing import Listing, plain
    from index_builder.part_builder import PartSettings

    settings = PartSettings(
        modality="text",
        batch_size=2,
        precision="float32",
        device="cpu",
        model_fingerprint=encoder.fingerprint,
    )
    for name in ("listing", "parts"):
        (tmp_path / name).mkdir()
    entries = plain(candidate(f"t{n}", text=f"text {n}") for n in range(5))
    listing = Listing(entries, tmp_path / "listing", part_items=2, key=settings.key)
    specs = pickle.loads(pickle.dumps(list(listing.parts())))  # noqa: S301
    parts = tmp_path / "parts"
    first = list(PartBuilder(pickle.loads(pickle.dumps(settings)), encoder, parts).build(specs))  # noqa: S301
    content = {path: path.read_bytes() for path in sorted(parts.rglob("*")) if path.is_file()}
    for spec in specs[::-1]:  # one by one, in another order, they come out the same
        assert len(list(PartBuilder(settings, encoder, parts).build([spec]))) == 1
    assert content == {path: path.read_bytes() for path in content}
    assert [part.number for part in first] == [0, 1, 2]
