"""`merge`: shards give what one build gives; other galleries keep their order."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from cots_model.encoder import Encoder
from cots_model.errors import GalleryError, InputError
from cots_model.testing import make_tiny_checkpoint
from index_builder.build import build_gallery
from index_builder.delete import delete_items
from index_builder.gallery import Gallery
from index_builder.indexes.base import IndexRequest
from index_builder.merge import merge_galleries
from index_builder.options import BuildOptions, UpdateOptions
from index_builder.parts import read_skips
from index_builder.update import update_gallery
from index_builder.verify import verify_gallery
from tests.index_builder.conftest import save_picture, version_content
from tests.videos import write_clip


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """Three tar files with ids that come twice and pictures that are none."""
    root = tmp_path_factory.mktemp("tars")
    for shard in range(3):
        with tarfile.open(root / f"s{shard}.tar", "w") as archive:
            for number in range(14):
                name = f"{(shard * 9 + number) % 25:02d}"
                path = save_picture(
                    root / "files" / f"{shard}-{number}.png", seed=shard * 50 + number
                )
                if number % 5 == 3:
                    path.write_bytes(b"")
                archive.add(path, f"{name}.png")
    return f"{root}/s{{0..2}}.tar"


@pytest.mark.parametrize("of", [2, 3])
@pytest.mark.parametrize("vectors", ["float32", "int8"])
def test_merge_of_all_shards_is_the_build_in_one_piece(build, shards, tmp_path, of, vectors):
    options = {"part_items": 3, "index": IndexRequest(vectors=vectors)}
    build(shards, tmp_path / "whole", **options)
    skipped = Gallery.open(tmp_path / "whole").manifest.skipped
    assert min(skipped["duplicate_id"], skipped["empty"]) > 2
    roots = [tmp_path / f"{number}" for number in range(of)]
    for number, root in enumerate(roots):
        build(shards, root, shard=(number, of), **options)
        assert not any(verify_gallery(root).values())
    report = merge_galleries(roots[::-1], tmp_path / "g")
    assert report.missing_shards == ()
    assert version_content(tmp_path / "g") == version_content(tmp_path / "whole")


def test_merge_of_some_shards_can_be_merged_on(build, shards, tmp_path):
    build(shards, tmp_path / "whole", part_items=3)
    roots = [tmp_path / f"{number}" for number in range(4)]
    for number, root in enumerate(roots):
        build(shards, root, part_items=3, shard=(number, 4))
    assert merge_galleries([roots[2], roots[0]], tmp_path / "a").missing_shards == (1, 3)
    assert merge_galleries([roots[3], roots[1]], tmp_path / "b").missing_shards == (0, 2)
    with pytest.raises(InputError, match="not different shards of one build"):
        merge_galleries([tmp_path / "a", roots[0]], tmp_path / "c")
    merge_galleries([tmp_path / "a", tmp_path / "b"], tmp_path / "g")
    assert version_content(tmp_path / "g") == version_content(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["pictures", "videos"])
def test_merge_takes_shards_without_items(build, encoder, tmp_path, kind):
    """One to which no part fell, and one of whose parts all was skipped."""
    source, options = tmp_path / "src", {"part_items": 2}
    if kind == "videos":
        options |= {"modality": "video", "batch_size": 16}
    for number in range(4):
        if kind == "pictures":
            save_picture(source / f"{number}.png", seed=number)
        else:
            source.mkdir(exist_ok=True)
            write_clip(source / f"{number}.mp4", 3)
    for path in sorted(source.iterdir())[2:]:
        path.write_bytes(b"")
    build(source, tmp_path / "whole", **options)
    roots = [tmp_path / f"{number}" for number in range(3)]
    reports = [build(source, root, shard=(at, 3), **options) for at, root in enumerate(roots)]
    assert [report.count for report in reports] == [2, 0, 0]
    assert [report.parts for report in reports] == [1, 1, 0]
    assert [sum(report.skipped.values()) for report in reports] == [0, 2, 0]
    for root in roots[1:]:
        assert not any(verify_gallery(root).values())
        with pytest.raises(GalleryError, match="is a shard without items; merge it"):
            Gallery.open(root)
        with pytest.raises(GalleryError, match="is only shard"):
            update_gallery(UpdateOptions(gallery=root), encoder)
    assert merge_galleries([roots[2], roots[1]], tmp_path / "ab").missing_shards == (0,)
    assert merge_galleries([tmp_path / "ab", roots[0]], tmp_path / "g").missing_shards == ()
    assert version_content(tmp_path / "g") == version_content(tmp_path / "whole")


def test_merge_of_shards_that_are_all_empty_is_refused(build, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"")
    for number in range(2):
        build(tmp_path / "bad", tmp_path / f"e{number}", shard=(number, 2))
    with pytest.raises(InputError, match="a gallery needs one"):
        merge_galleries([tmp_path / "e0", tmp_path / "e1"], tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_a_shard_of_a_source_that_holds_nothing_is_refused(build, tmp_path):
    (tmp_path / "src").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        build(tmp_path / "src", tmp_path / "g", shard=(0, 2))
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("changed", ["source", "part_items"])
def test_merge_refuses_shards_of_different_listings(build, tmp_path, changed):
    for number in range(8):
        save_picture(tmp_path / "src" / f"{number}.png", seed=number)
    build(tmp_path / "src", tmp_path / "0", part_items=2, shard=(0, 2))
    if changed == "source":  # all that comes behind falls to other parts
        save_picture(tmp_path / "src/00.png", seed=50)
    build(tmp_path / "src", tmp_path / "1", part_items=2 + (changed == "part_items"), shard=(1, 2))
    with pytest.raises(InputError, match="cut from different listings"):
        merge_galleries([tmp_path / "0", tmp_path / "1"], tmp_path / "g")


def test_merge_into_one_of_them_takes_what_was_published_last(pair, tmp_path, monkeypatch):
    from contextlib import contextmanager

    from index_builder import merge

    lock = merge.builder_lock

    @contextmanager
    def lock_late(root: Path):
        """Another builder was faster, and is through when the lock is to be had."""
        delete_items(root, ["5.png"])
        with lock(root):
            yield

    monkeypatch.setattr(merge, "builder_lock", lock_late)
    merge_galleries([pair[0], pair[1]], pair[0])
    gallery = Gallery.open(pair[0])
    assert gallery.item(gallery.row("5.png")).uri.endswith("/two/5.png")


@pytest.fixture
def pair(build, tmp_path) -> list[Path]:
    for number in range(6):
        save_picture(tmp_path / "one" / f"{number}.png", seed=number)
        save_picture(tmp_path / "two" / f"{number + 4}.png", seed=number + 20)
    (tmp_path / "two/bad.png").write_bytes(b"")
    roots = [tmp_path / "g1", tmp_path / "g2"]
    for name, root in zip(("one", "two"), roots, strict=True):
        build(tmp_path / name, root)
    return roots


def test_merge_keeps_the_first_of_an_id_and_serves_all_originals(pair, tmp_path, encoder):
    report = merge_galleries(pair, tmp_path / "g")
    assert (report.count, report.duplicates) == (10, 2)
    merged, one, two = (Gallery.open(root) for root in (tmp_path / "g", *pair))
    assert merged.ids() == sorted({*one.ids(), *two.ids()})
    for row, name in enumerate(merged.ids()):
        origin = one if name in one.ids() else two
        assert np.array_equal(merged.vector(row), origin.vector(origin.row(name)))
        assert merged.read_content(row) == origin.read_content(origin.row(name))
    folder = tmp_path / "g/versions" / merged.version
    assert [skip.id for skip in read_skips(folder / "skipped.jsonl")] == [
        "bad.png",
        "4.png",
        "5.png",
    ]
    assert not any(verify_gallery(tmp_path / "g").values())
    report = merge_galleries([tmp_path / "g", pair[1]], pair[1])  # into one of them
    assert (report.count, report.duplicates) == (10, 6)


def test_merge_remembers_deleted_ids_unless_another_has_them(pair, tmp_path, encoder):
    delete_items(pair[0], ["0.png", "4.png"])
    report = merge_galleries(pair, tmp_path / "g")
    assert report.count == 9
    update = UpdateOptions(gallery=tmp_path / "g", workers=1, sources=(str(tmp_path / "one"),))
    assert update_gallery(update, encoder).deleted == 1


def test_merge_refuses_what_does_not_fit_naming_it(pair, build, tmp_path, encoder):
    other = Encoder.load(make_tiny_checkpoint(tmp_path / "other", seed=1), device="cpu")
    options = BuildOptions(sources=(str(tmp_path / "one"),), gallery=tmp_path / "g3", workers=1)
    build_gallery(options, other)
    with pytest.raises(InputError, match="model_fingerprint") as caught:
        merge_galleries([pair[0], tmp_path / "g3"], tmp_path / "g")
    assert encoder.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)
    build(tmp_path / "one", tmp_path / "g4", index=IndexRequest(vectors="float16"))
    with pytest.raises(InputError, match=r"float32 vectors, but .* float16"):
        merge_galleries([pair[0], tmp_path / "g4"], tmp_path / "g")
    build(tmp_path / "one", tmp_path / "g5", shard=(0, 1))
    with pytest.raises(InputError, match="not different shards"):
        merge_galleries([pair[0], tmp_path / "g5"], tmp_path / "g")
    with pytest.raises(InputError, match="at least two"):
        merge_galleries(pair[:1], tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_updating_one_source_of_a_merged_gallery_lets_nothing_of_the_others_go(
    build, encoder, tmp_path
):
    for name in ("a", "b"):
        for number in range(3):
            save_picture(tmp_path / name / f"{name}{number}.png", seed=number)
        build(tmp_path / name, tmp_path / f"g-{name}")
    merged = tmp_path / "both"
    merge_galleries([tmp_path / "g-a", tmp_path / "g-b"], merged)
    with pytest.raises(InputError, match=r"merged of .*name one of them behind the gallery"):
        update_gallery(UpdateOptions(gallery=merged), encoder)
    (tmp_path / "a/a1.png").unlink()
    options = UpdateOptions(gallery=merged, sources=(str(tmp_path / "a"),), remove_missing=True)
    report = update_gallery(options, encoder)
    assert (report.count, report.missing) == (5, 1)
    gallery = Gallery.open(merged)
    assert gallery.ids() == ["a0.png", "a2.png", "b0.png", "b1.png", "b2.png"]
    assert gallery.read_content(3) == (tmp_path / "b/b1.png").read_bytes()
    assert not any(verify_gallery(merged).values())


def test_a_source_that_moved_lets_go_what_it_has_no_more(build, encoder, tmp_path):
    for number in range(3):
        save_picture(tmp_path / f"a/{number}.png", seed=number)
    build(tmp_path / "a", tmp_path / "g")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b/1.png").unlink()
    options = UpdateOptions(
        gallery=tmp_path / "g", sources=(str(tmp_path / "b"),), remove_missing=True
    )
    report = update_gallery(options, encoder)
    assert (report.count, report.missing, report.unchanged) == (2, 1, 2)
    assert Gallery.open(tmp_path / "g").manifest.roots == (str(tmp_path / "b"),)
