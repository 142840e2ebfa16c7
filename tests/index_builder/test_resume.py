"""Builds that stopped half way and are run again: what is kept, what is not, and equal bytes."""

import json
from pathlib import Path

import pytest
import torch

from cots_model.encoder import Encoder
from cots_model.errors import CotsError
from index_builder.gallery import Gallery
from tests.index_builder.conftest import save_picture, version_content


class InterruptedBuildError(Exception):
    """The build was stopped."""


@pytest.fixture
def interrupt(monkeypatch, build):
    """Build, and stop in the given batch of four."""

    def run(source: Path, root: Path, *, batch: int, **options: object) -> None:
        encode = Encoder.encode_pixels
        calls = []

        def stop(self: Encoder, img_BCHW: object) -> object:
            calls.append(None)
            if len(calls) == batch:
                raise InterruptedBuildError
            return encode(self, img_BCHW)

        with monkeypatch.context() as patch:
            patch.setattr(Encoder, "encode_pixels", stop)
            with pytest.raises(InterruptedBuildError):
                build(source, root, **options)

    return run


def parts_of(root: Path) -> list[Path]:
    return sorted((root / ".build/parts").iterdir())


def test_build_goes_on_after_the_last_finished_part(
    interrupt, build, photos, gallery_root, tmp_path
):
    root = tmp_path / "g"
    interrupt(photos, root, batch=5)  # parts are 8 entries, so two are through
    assert not (root / "current").exists()
    finished = parts_of(root)
    assert len(finished) == 2
    inodes = [(path / "vectors.npy").stat().st_ino for path in finished]

    interrupt(photos, root, batch=1)
    assert [(path / "vectors.npy").stat().st_ino for path in parts_of(root)] == inodes
    report = build(photos, root)
    assert (report.parts, report.parts_continued) == (3, 2)
    assert version_content(root) == version_content(gallery_root)
    assert not (root / ".build").exists()


def test_build_does_a_damaged_part_again(interrupt, build, photos, gallery_root, tmp_path):
    root = tmp_path / "g"
    interrupt(photos, root, batch=5)
    first, second = parts_of(root)
    path = first / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (second / "part.json").write_text("{")
    report = build(photos, root)
    assert report.parts_continued == 0
    assert version_content(root) == version_content(gallery_root)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 2),
        ({"workers": 3, "keep_versions": 1, "decode_timeout_s": 9.0}, 2),
        ({"batch_size": 3}, 0),
        ({"part_items": 7}, 0),
    ],
)
def test_build_keeps_only_parts_whose_bytes_would_be_the_same(
    interrupt, build, photos, tmp_path, options, kept
):
    root = tmp_path / "g"
    interrupt(photos, root, batch=5)
    assert build(photos, root, **options).parts_continued == kept
    build(photos, tmp_path / "whole", **options)
    assert version_content(root) == version_content(tmp_path / "whole")


def test_build_keeps_no_part_that_other_threads_computed(interrupt, build, photos, tmp_path):
    num_threads = torch.get_num_threads()
    interrupt(photos, tmp_path / "g", batch=5)
    try:
        torch.set_num_threads(num_threads + 1)
        assert build(photos, tmp_path / "g").parts_continued == 0
    finally:
        torch.set_num_threads(num_threads)


def test_build_of_another_model_keeps_nothing(interrupt, photos, tmp_path):
    from cots_model.testing import make_tiny_checkpoint
    from index_builder.build import build_gallery
    from index_builder.options import BuildOptions

    root = tmp_path / "g"
    interrupt(photos, root, batch=5)
    other = Encoder.load(make_tiny_checkpoint(tmp_path / "other", seed=1), device="cpu")
    options = BuildOptions(
        sources=(str(photos),), gallery=root, workers=1, batch_size=4, part_items=8
    )
    assert build_gallery(options, other).parts_continued == 0
    assert Gallery.open(root, expected_fingerprint=other.fingerprint)


def test_build_sees_what_changed_in_the_source_since_it_stopped(interrupt, build, tmp_path):
    source, root = tmp_path / "photos", tmp_path / "g"
    for number in range(24):
        save_picture(source / f"{number:02d}.png", seed=number)
    interrupt(source, root, batch=5)
    (source / "09.json").write_text('{"year": 1}')  # in the second part
    (source / "23.png").unlink()
    report = build(source, root)
    assert (report.parts, report.parts_continued) == (3, 1)
    build(source, tmp_path / "whole")
    assert version_content(root) == version_content(tmp_path / "whole")


def test_build_embeds_a_file_that_changed_since_it_stopped(interrupt, build, tmp_path):
    source, root = tmp_path / "photos", tmp_path / "g"
    for number in range(24):
        save_picture(source / f"{number:02d}.png", seed=number)
    interrupt(source, root, batch=5)
    save_picture(source / "03.png", seed=99)  # in the first part
    report = build(source, root)
    assert (report.parts, report.parts_continued) == (3, 1)
    build(source, tmp_path / "whole")
    assert version_content(root) == version_content(tmp_path / "whole")


def test_build_counts_what_it_met_although_parts_were_continued(interrupt, build, tmp_path):
    source, root = tmp_path / "photos", tmp_path / "g"
    for number in range(20):
        save_picture(source / f"{number:02d}.png", seed=number)
    (source / "00.json").write_text("[")
    (source / "a.doc").write_text("")
    (source / "01.png").write_bytes(b"")
    (tmp_path / "m.csv").write_text("id,year\n02.png,1\n19.png,2\n")
    interrupt(source, root, batch=5, metadata=tmp_path / "m.csv")
    report = build(source, root, metadata=tmp_path / "m.csv")
    assert report.parts_continued == 2
    assert (report.ignored, report.bad_sidecars, report.metadata_matched) == (1, 1, 2)
    assert report.skipped == {"empty": 1}
    assert report.count == 19


@pytest.mark.parametrize("mount_point_stays", [False, True])
def test_build_stops_when_the_source_vanishes_and_goes_on_when_it_is_back(
    build, photos, tmp_path, monkeypatch, mount_point_stays
):
    source, root, away = tmp_path / "photos", tmp_path / "g", tmp_path / "away"
    for number in range(24):
        save_picture(source / f"{number:02d}.png", seed=number)
    build(photos, root)
    version = Gallery.open(root).version
    encode = Encoder.encode_pixels

    def unmount(self: Encoder, img_BCHW: object) -> object:
        if not away.exists():
            source.rename(away)
            if mount_point_stays:
                source.mkdir()
        return encode(self, img_BCHW)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_pixels", unmount)
        with pytest.raises(CotsError, match="no longer there"):
            build(source, root, batch_size=1, part_items=2)
    assert Gallery.open(root).version == version
    if mount_point_stays:
        source.rmdir()
    away.rename(source)
    report = build(source, root, batch_size=1, part_items=2)
    assert report.skipped == {}
    assert report.count == 24


def test_build_tries_originals_again_that_were_gone_when_it_stopped(build, tmp_path, monkeypatch):
    source, root, away = tmp_path / "src", tmp_path / "g", tmp_path / "away.png"
    for number in range(40):
        save_picture(source / f"{number:02d}.png", seed=number)
    encode = Encoder.encode_pixels
    calls = []

    def lose_one_and_stop(self: Encoder, img_BCHW: object) -> object:
        calls.append(None)
        if len(calls) == 1:
            (source / "20.png").rename(away)  # listed, and far from being decoded
        if len(calls) == 8:
            raise InterruptedBuildError
        return encode(self, img_BCHW)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_pixels", lose_one_and_stop)
        with pytest.raises(InterruptedBuildError):
            build(source, root, part_items=4)
    num_finished = len(parts_of(root))
    assert num_finished >= 6
    away.rename(source / "20.png")
    report = build(source, root, part_items=4)
    assert (report.count, report.skipped) == (40, {})
    assert report.parts_continued == num_finished - 1


def test_build_where_nothing_can_be_written_is_an_error(build, photos):
    with pytest.raises(CotsError, match="/proc/gallery could not be written"):
        build(photos, Path("/proc/gallery"))


def test_listing_gives_back_what_was_listed(tmp_path):
    from index_builder.content import Location, Stamp
    from index_builder.listing import Entry, Listing, read_listing
    from index_builder.sources.entry import Candidate, Skip

    metadata = {"tags": ["é", {"a": None}], "year": 2**70, "ok": True}
    location = Location("/a/\udce9.tar", 5, 7, "/a")
    entries = [
        Entry(Candidate("é", "file:///é", location, "é.jpg", metadata, Stamp(7, 1.25))),
        Entry(Candidate("t", "file:///t", Location("/t"), "t", text="a\u2028b\n"), (3, 4)),
        Entry(Skip("s", "file:///s", "missing", "“gone”\n")),
    ]
    listing = Listing(iter(entries), tmp_path, part_items=2, key="k")
    specs = list(listing.parts())
    assert [entry for spec in specs for entry in read_listing(spec.path)] == entries
    assert [(spec.number, spec.num_entries) for spec in specs] == [(0, 2), (1, 1)]
    (tmp_path / "again").mkdir()
    again = Listing(iter(entries), tmp_path / "again", part_items=2, key="k").parts()
    assert [spec.key for spec in again] == [spec.key for spec in specs]
    other = Listing(iter(entries), tmp_path / "again", part_items=2, key="other").parts()
    assert not {spec.key for spec in other} & {spec.key for spec in specs}
    assert json.loads(specs[0].path.read_text("ascii").splitlines()[1])["rows"] == [3, 4]
