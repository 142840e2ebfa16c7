"""Video and text galleries built from real files: equal to reading each by itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cots_model.encoder import Encoder
from index_builder import changes
from index_builder.delete import delete_items
from index_builder.gallery import Gallery
from index_builder.merge import merge_galleries
from index_builder.options import UpdateOptions
from index_builder.sources.entry import Skip
from index_builder.update import update_gallery
from index_builder.verify import verify_gallery
from tests.galleries import publish_videos
from tests.index_builder.conftest import version_content
from tests.videos import scene_of, write_clip

LENGTHS = {"a.mp4": 25, "b.mp4": 70, "c.mp4": 4, "d.mp4": 31, "sub/e.mp4": 12}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Five videos of 0.4 to 7 seconds, and one that is none."""
    root = tmp_path_factory.mktemp("clips")
    (root / "sub").mkdir()
    for film, (name, num_frames) in enumerate(LENGTHS.items()):
        write_clip(root / name, num_frames, paint=lambda n, size, f=film: scene_of(n, size, film=f))
    (root / "bad.mp4").write_bytes(b"no video")
    return root


OPTIONS = {"modality": "video", "batch_size": 20, "part_items": 2}


@pytest.mark.parametrize("segment_s", [None, 2.0])
def test_build_of_videos_is_what_reading_each_by_itself_gives(
    build, clips, encoder, tmp_path, segment_s
):
    report = build(clips, tmp_path / "g", segment_seconds=segment_s, **OPTIONS)
    assert sum(report.skipped.values()) == 1
    gallery = Gallery.open(tmp_path / "g")
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in LENGTHS:
        (plain / name.removeprefix("sub/")).symlink_to(clips / name)
    expected = Gallery.open(publish_videos(tmp_path / "e", encoder, plain, segment_s=segment_s))
    assert len(gallery) == len(expected) == report.count
    assert len(gallery) > len(LENGTHS) or segment_s is None
    for row in range(len(gallery)):
        one, other = gallery.item(row), expected.item(row)
        assert one.id.removeprefix("sub/").split("#")[0] == other.id.split("#")[0]
        assert (one.start_s, one.end_s, one.duration_s) == (
            other.start_s,
            other.end_s,
            other.duration_s,
        )
        np.testing.assert_allclose(gallery.vector(row), expected.vector(row), atol=1e-5)
        assert gallery.frames.times(row).tolist() == expected.frames.times(row).tolist()
        np.testing.assert_allclose(
            gallery.frames.vectors(row), expected.frames.vectors(row), atol=1e-3
        )
        assert gallery.read_content(row) == (clips / one.id.split("#")[0]).read_bytes()
    assert not any(verify_gallery(tmp_path / "g").values())


def test_build_of_videos_goes_on_and_is_split_with_the_same_bytes(
    build, clips, tmp_path, monkeypatch
):
    options = OPTIONS | {"segment_seconds": 2.0}
    build(clips, tmp_path / "whole", **options)
    expected = version_content(tmp_path / "whole")
    encode = Encoder.encode_pixels
    calls = []

    def stop(self: Encoder, img_BCHW: object) -> object:
        calls.append(None)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return encode(self, img_BCHW)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_pixels", stop)
        with pytest.raises(KeyboardInterrupt):
            build(clips, tmp_path / "g", **options)
    assert build(clips, tmp_path / "g", **options).parts_continued >= 1
    assert version_content(tmp_path / "g") == expected

    for number in range(2):
        build(clips, tmp_path / f"s{number}", shard=(number, 2), **options)
    merge_galleries([tmp_path / "s0", tmp_path / "s1"], tmp_path / "merged")
    assert version_content(tmp_path / "merged") == expected


def test_update_of_videos_brings_back_segments_and_tries_again_what_was_skipped(
    build, clips, encoder, tmp_path, monkeypatch
):
    root = tmp_path / "g"
    build(clips, root, segment_seconds=2.0, **OPTIONS)
    expected = Gallery.open(root).ids()
    [first, *_] = [item_id for item_id in expected if item_id.startswith("b.mp4#t=")]
    delete_items(root, [first])
    options = UpdateOptions(gallery=root, workers=1)
    assert update_gallery(options, encoder).unchanged == len(LENGTHS)
    assert first not in Gallery.open(root).ids()
    restored = update_gallery(replace(options, restore_deleted=True), encoder)
    assert restored.unchanged == len(LENGTHS) - 1
    assert Gallery.open(root).ids() == expected

    broken = Skip("b.mp4", "file:///b.mp4", "decoder_timeout", "the rest of it")
    with monkeypatch.context() as patch:
        patch.setattr(changes, "read_skips", lambda _: iter([broken]))
        assert update_gallery(options, encoder).unchanged == len(LENGTHS) - 1
    assert update_gallery(options, encoder).unchanged == len(LENGTHS)


def test_build_of_texts_from_a_file_of_lines(build, encoder, tmp_path):
    (tmp_path / "t.txt").write_text("a dog\n\ntwo cats in the snow\na dog\n")
    report = build(tmp_path / "t.txt", tmp_path / "g", modality="text", part_items=2)
    assert (report.count, report.parts) == (3, 2)
    gallery = Gallery.open(tmp_path / "g")
    texts = [gallery.item(row).text for row in range(3)]
    assert sorted(texts) == ["a dog", "a dog", "two cats in the snow"]
    stored = gallery.vectors.rows(np.arange(3))
    np.testing.assert_allclose(stored, encoder.encode_texts(texts), atol=1e-5)
