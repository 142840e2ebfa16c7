"""`update`: only what is new or changed is embedded, and the rest stays as it was."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cots_model.encoder import Encoder
from cots_model.errors import GalleryError, InputError
from cots_model.testing import make_tiny_checkpoint
from index_builder import update as update_module
from index_builder.delete import delete_items
from index_builder.gallery import Gallery
from index_builder.indexes.base import IndexRequest
from index_builder.lock import GalleryBusyError, builder_lock
from index_builder.manifest import Manifest
from index_builder.options import UpdateOptions
from index_builder.update import preview_update, update_gallery
from index_builder.verify import verify_gallery
from tests.index_builder.conftest import save_picture, version_content


@pytest.fixture
def source(tmp_path) -> Path:
    for number in range(12):
        save_picture(tmp_path / "src" / f"{number:02d}.png", seed=number)
    return tmp_path / "src"


@pytest.fixture
def root(source, build, tmp_path) -> Path:
    build(source, tmp_path / "g")
    return tmp_path / "g"


@pytest.fixture
def embedded(monkeypatch) -> list[int]:
    """Sizes of the batches embedded."""
    sizes: list[int] = []
    encode = Encoder.encode_pixels

    def count(self: Encoder, img_BCHW: object) -> object:
        sizes.append(len(img_BCHW))
        return encode(self, img_BCHW)

    monkeypatch.setattr(Encoder, "encode_pixels", count)
    return sizes


def update(root: Path, encoder: Encoder, **options: object):
    return update_gallery(UpdateOptions(gallery=root, workers=1, part_items=5, **options), encoder)


def vectors(root: Path) -> dict[str, np.ndarray]:
    gallery = Gallery.open(root)
    return {name: gallery.vector(row) for row, name in enumerate(gallery.ids())}


@pytest.mark.parametrize("compare", ["stamp", "hash"])
def test_update_embeds_only_what_is_new_or_changed(root, source, encoder, embedded, compare):
    before = vectors(root)
    save_picture(source / "sub/new.png", seed=50)
    save_picture(source / "03.png", seed=51)
    (source / "04.json").write_text('{"year": 2024}')
    report = update(root, encoder, compare=compare)
    assert sum(embedded) == 2
    assert (report.count, report.unchanged, report.missing) == (13, 11, 0)
    after = vectors(root)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == set(before) - {"03.png"}
    gallery = Gallery.open(root)
    assert gallery.item(gallery.row("04.png")).metadata == {"year": 2024}
    for name in ("sub/new.png", "03.png"):
        assert gallery.read_content(gallery.row(name)) == (source / name).read_bytes()
    assert not any(verify_gallery(root).values())


def test_update_by_hash_sees_a_change_that_size_and_time_do_not_show(root, source, encoder):
    path = source / "03.png"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # within the last chunk but one
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert update(root, encoder, compare="stamp").unchanged == 12
    assert update(root, encoder, compare="hash").unchanged == 11


def test_update_looks_into_a_file_of_the_same_size_and_time_in_another_place(
    build, encoder, tmp_path, embedded
):
    for name, seed in {"one/a.bmp": 1, "two/a.bmp": 2, "one/b.bmp": 3, "two/b.bmp": 3}.items():
        os.utime(save_picture(tmp_path / name, seed=seed), (1_000_000_000, 1_000_000_000))
    root = tmp_path / "g"
    build(tmp_path / "one", root)
    embedded.clear()
    report = update(root, encoder, sources=(str(tmp_path / "two"),))
    assert (report.unchanged, embedded) == (1, [1])
    gallery = Gallery.open(root)
    assert gallery.read_content(gallery.row("a.bmp")) == (tmp_path / "two/a.bmp").read_bytes()
    assert update(root, encoder).unchanged == 2


def test_update_by_hash_takes_over_what_was_only_touched(root, source, encoder, embedded):
    (source / "03.png").touch()
    report = update(root, encoder, compare="hash")
    assert (report.unchanged, embedded) == (12, [])
    gallery = Gallery.open(root)  # with the new time, so that it is not hashed when served
    assert gallery.item(gallery.row("03.png")).mtime_s == (source / "03.png").stat().st_mtime
    (source / "03.png").touch()
    assert update(root, encoder).unchanged == 11


def test_update_keeps_what_is_gone_unless_told_otherwise(root, source, encoder, embedded):
    before = vectors(root)
    (source / "00.png").unlink()
    (source / "11.png").unlink()
    report = update(root, encoder)
    assert (report.count, report.missing, report.unchanged) == (12, 2, 10)
    after = vectors(root)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    report = update(root, encoder, remove_missing=True)
    assert (report.count, report.missing) == (10, 2)
    assert "00.png" not in Gallery.open(root).ids()
    assert embedded == []


@pytest.mark.parametrize("remove", [False, True])
def test_update_keeps_rows_of_a_manifest_whose_originals_are_gone(
    source, build, encoder, tmp_path, remove
):
    manifest, root = tmp_path / "m.csv", tmp_path / "m"
    manifest.write_text("path\n" + "".join(f"src/{n:02d}.png\n" for n in range(12)))
    build(manifest, root)
    before = vectors(root)
    item = Gallery.open(root).item(3)
    (source / "03.png").unlink()
    (source / "07.png").unlink()
    report = update(root, encoder, remove_missing=remove)
    assert (report.missing, report.unchanged) == (2, 10)
    assert report.skipped == {"missing": 2}
    assert report.count == (10 if remove else 12)
    if not remove:
        assert Gallery.open(root).item(3) == item
        assert all(np.array_equal(before[name], one) for name, one in vectors(root).items())
    assert not any(verify_gallery(root).values())


@pytest.mark.parametrize("remove", [False, True])
def test_update_keeps_rows_whose_originals_cannot_be_read_this_time(
    bucket, build, encoder, tmp_path, monkeypatch, remove
):
    import fsspec

    from index_builder.content import ContentError
    from index_builder.pipeline import fetch

    store = fsspec.filesystem("s3", use_listings_cache=False)
    for number in range(4):
        picture = save_picture(tmp_path / f"{number}.png", seed=number)
        store.put(str(picture), f"{bucket}/{number}.png")
    root = tmp_path / "g"
    build(bucket, root)
    before = vectors(root)
    store.put(str(save_picture(tmp_path / "new.png", seed=9, side=30)), f"{bucket}/2.png")

    def refuse(*_: object, **__: object) -> None:
        raise ContentError("unreadable", "the store is down")

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "read_location", refuse)
        patch.setattr(fetch, "_FIRST_PAUSE_S", 0.0)
        report = update(root, encoder, remove_missing=remove)
    assert (report.count, report.skipped, report.missing) == (4, {"unreadable": 1}, 0)
    assert all(np.array_equal(before[name], one) for name, one in vectors(root).items())
    assert update(root, encoder).skipped == {}
    assert not np.array_equal(before["2.png"], vectors(root)["2.png"])


def test_update_removes_nothing_from_a_shard_that_is_damaged(build, encoder, tmp_path):
    files = [(save_picture(tmp_path / f"{n}.png", seed=n), f"{n}.png") for n in range(8)]
    for shard in range(2):
        with tarfile.open(tmp_path / f"s{shard}.tar", "w") as archive:
            for path, name in files[shard * 4 : shard * 4 + 4]:
                archive.add(path, name)
    root = tmp_path / "g"
    build(f"{tmp_path}/s{{0..1}}.tar", root)
    whole = (tmp_path / "s0.tar").read_bytes()
    (tmp_path / "s0.tar").write_bytes(whole[: len(whole) // 3])
    report = update(root, encoder, remove_missing=True)
    assert (report.count, report.missing) == (8, 0)
    with tarfile.open(tmp_path / "s0.tar", "w") as archive:
        archive.add(*files[0])
    assert update(root, encoder, remove_missing=True).count == 5


@pytest.mark.parametrize("vectors_type", ["float32", "int8"])
def test_update_without_a_change_publishes_nothing(
    source, build, encoder, tmp_path, embedded, vectors_type
):
    root = tmp_path / "g"
    (source / "bad.png").write_text("text")
    build(source, root, index=IndexRequest(vectors=vectors_type))
    embedded.clear()
    before = set(root.rglob("*"))
    report = update(root, encoder)
    assert not report.published
    assert report.version == Gallery.open(root).version
    assert (report.count, report.unchanged, report.retried) == (12, 12, 1)
    assert report.skipped == {"unsupported_format": 1}
    assert set(root.rglob("*")) == before
    assert embedded == []


@pytest.mark.parametrize(
    "change",
    ["metadata", "time", "skipped", "index", "target_recall", "vectors", "checkpoint", "restored"],
)
def test_update_publishes_whatever_is_another_thing_now(root, source, encoder, embedded, change):
    if change == "restored":
        delete_items(root, ["03.png"])
    version = Gallery.open(root).version
    options: dict[str, object] = {
        "index": {"index": IndexRequest(kind="hnsw")},
        "target_recall": {"index": IndexRequest(target_recall=0.9)},
        "vectors": {"index": IndexRequest(vectors="float16")},
        "checkpoint": {"checkpoint": "elsewhere"},
        "restored": {"restore_deleted": True},
    }.get(change, {})
    if change == "metadata":
        (source / "04.json").write_text('{"year": 2024}')
    elif change == "time":
        (source / "04.png").touch()
        options = {"compare": "hash"}
    elif change == "skipped":
        (source / "bad.png").write_text("text")
    report = update(root, encoder, **options)
    assert report.published
    assert report.version == Gallery.open(root).version > version
    assert report.touched == (change in ("metadata", "time"))
    assert sum(embedded) == (change == "restored")
    assert not update(root, encoder).published


def test_update_without_a_change_gives_the_bytes_it_would_publish(root, encoder, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    update(root, encoder, checkpoint="elsewhere")
    before, after = version_content(tmp_path / "copy"), version_content(root)
    assert before.pop("manifest.json")["recipe"] != after.pop("manifest.json")["recipe"]
    assert after == before


def test_update_counts_and_lists_what_it_found(root, source, encoder):
    (source / "bad.png").write_text("text")
    update(root, encoder)
    delete_items(root, ["00.png"])
    save_picture(source / "new.png", seed=50)
    save_picture(source / "01.png", seed=51, side=30)
    (source / "02.json").write_text('{"year": 2024}')
    for name in ("10.png", "05.png"):
        (source / name).unlink()
    preview = preview_update(UpdateOptions(gallery=root))
    report = update(root, encoder)
    for found in (preview, report):
        assert (found.new, found.changed, found.unchanged, found.touched) == (1, 1, 8, 1)
        assert (found.retried, found.deleted, found.unreadable) == (1, 1, 0)
        assert (found.missing, found.gone) == (2, ("05.png", "10.png"))
    assert (preview.count, report.count) == (11, 12)
    assert report.skipped == {"unsupported_format": 1}


def test_a_preview_writes_nothing_and_waits_for_no_build(root, source):
    save_picture(source / "new.png", seed=50)

    def everything() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    with builder_lock(root):
        before = everything()
        preview = preview_update(UpdateOptions(gallery=root, remove_missing=True))
        assert everything() == before
    assert (preview.version, preview.new) == (Gallery.open(root).version, 1)
    with pytest.raises(InputError, match="is not there"):
        preview_update(UpdateOptions(gallery=root, sources=("nowhere",)))


def test_a_preview_of_a_manifest_says_which_originals_are_gone(source, build, encoder, tmp_path):
    manifest, root = tmp_path / "m.csv", tmp_path / "m"
    manifest.write_text("path\n" + "".join(f"src/{n:02d}.png\n" for n in range(12)))
    build(manifest, root)
    (source / "03.png").unlink()
    preview = preview_update(UpdateOptions(gallery=root))
    assert (preview.gone, preview.changed, preview.unchanged) == (("src/03.png",), 0, 11)
    report = update(root, encoder)
    assert (report.gone, report.changed, report.unchanged) == (("src/03.png",), 0, 11)


def test_counts_of_an_update_that_was_interrupted_are_of_the_whole(
    root, source, encoder, monkeypatch
):
    for number in range(20, 32):
        save_picture(source / f"{number}.png", seed=number)
    encode = Encoder.encode_pixels
    calls = []

    def stop(self: Encoder, img_BCHW: object) -> object:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, img_BCHW)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_pixels", stop)
        with pytest.raises(KeyboardInterrupt):
            update(root, encoder)
    report = update(root, encoder)
    assert report.parts_continued >= 2
    assert (report.new, report.unchanged) == (12, 12)


def test_update_leaves_deleted_ids_out_until_they_are_restored(root, encoder):
    delete_items(root, ["02.png", "03.png"])
    report = update(root, encoder)
    assert (report.count, report.deleted, report.missing) == (10, 2, 0)
    assert update(root, encoder).deleted == 2  # remembered by that version too
    report = update(root, encoder, restore_deleted=True)
    assert (report.count, report.deleted) == (12, 0)
    assert update(root, encoder).deleted == 0
    assert not any(verify_gallery(root).values())


def test_update_interrupted_goes_on(root, source, encoder, monkeypatch, tmp_path):
    for number in range(20, 32):
        save_picture(source / f"{number}.png", seed=number)
    shutil.copytree(root, tmp_path / "whole")
    update(tmp_path / "whole", encoder)
    encode = Encoder.encode_pixels
    calls = []

    def stop(self: Encoder, img_BCHW: object) -> object:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, img_BCHW)

    version = Gallery.open(root).version
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_pixels", stop)
        with pytest.raises(KeyboardInterrupt):
            update(root, encoder)
    assert Gallery.open(root).version == version
    report = update(root, encoder)
    assert report.parts_continued >= 2
    assert version_content(root) == version_content(tmp_path / "whole")


def test_update_of_another_source_looks_there_from_now_on(root, source, encoder, tmp_path):
    save_picture(tmp_path / "other/x.png", seed=80)
    report = update(root, encoder, sources=(str(tmp_path / "other"),))
    assert (report.count, report.missing) == (13, 0)
    gallery = Gallery.open(root)
    assert gallery.manifest.recipe.sources == (str(tmp_path / "other"),)
    for name in ("x.png", "05.png"):  # originals of both sources are served
        assert gallery.read_content(gallery.row(name))
    assert update(root, encoder, remove_missing=True).count == 13  # they are all where they were
    shutil.rmtree(source)
    report = update(root, encoder, remove_missing=True)
    assert (report.count, report.missing) == (1, 12)


def test_update_by_another_model_is_refused_naming_both(root, encoder, tmp_path):
    other = Encoder.load(make_tiny_checkpoint(tmp_path / "other", seed=1), device="cpu")
    version = Gallery.open(root).version
    with pytest.raises(GalleryError) as caught:
        update(root, other)
    assert encoder.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)
    assert Gallery.open(root).version == version


def test_update_of_a_shard_a_busy_or_a_damaged_gallery_is_refused(
    root, source, build, encoder, tmp_path
):
    build(source, tmp_path / "s", shard=(0, 2))
    with pytest.raises(GalleryError, match="only shard 0 of 2"):
        update(tmp_path / "s", encoder)
    with builder_lock(root), pytest.raises(GalleryBusyError):
        update(root, encoder)
    [path] = root.glob("versions/*/vectors.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(GalleryError, match=r"vectors\.npy is damaged"):
        update(root, encoder)


@pytest.mark.parametrize("vectors_type", ["float16", "int8"])
def test_update_keeps_vectors_of_other_types_as_they_are_stored(
    source, build, encoder, tmp_path, vectors_type
):
    root = tmp_path / vectors_type
    build(source, root, index=IndexRequest(vectors=vectors_type))
    before = Gallery.open(root)
    save_picture(source / "zz.png", seed=99)
    update(root, encoder)
    after = Gallery.open(root)
    assert after.manifest.vectors.type == vectors_type
    assert len(after) == 13
    np.testing.assert_allclose(
        [after.vector(row) for row in range(12)],
        [before.vector(row) for row in range(12)],
        atol=0 if vectors_type == "float16" else after.manifest.vectors.scale,
    )


@pytest.mark.parametrize("wanted", ["float32", "float16"])
def test_update_from_int8_to_a_finer_type_gives_unit_vectors(
    source, build, encoder, tmp_path, wanted
):
    root = tmp_path / "g"
    build(source, root, index=IndexRequest(vectors="int8"))
    before = vectors(root)
    update(root, encoder, index=IndexRequest(vectors=wanted))
    assert Gallery.open(root).manifest.vectors.type == wanted
    assert not any(verify_gallery(root).values())
    for name, vector_E in vectors(root).items():
        cosine = vector_E @ before[name] / np.linalg.norm(before[name]) / np.linalg.norm(vector_E)
        assert cosine > 0.99999


def test_an_update_with_nothing_to_do_keeps_no_more_versions_than_it_is_told(root, encoder):
    delete_items(root, ["03.png"])
    assert len(list((root / "versions").iterdir())) == 2
    report = update(root, encoder, keep_versions=1)
    assert not report.published
    assert [path.name for path in (root / "versions").iterdir()] == [report.version]


def test_a_preview_looks_again_if_its_version_is_replaced_and_removed(
    root, source, encoder, monkeypatch
):
    checked, real = [], update_module.check_version

    def replaced(folder: Path, manifest: Manifest) -> None:
        checked.append(folder)
        if len(checked) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(update_module, "check_version", real)
                save_picture(source / "new.png", seed=50)
                update(root, encoder, keep_versions=1)
        real(folder, manifest)

    monkeypatch.setattr(update_module, "check_version", replaced)
    preview = preview_update(UpdateOptions(gallery=root))
    assert (preview.version, preview.count, preview.new) == (Gallery.open(root).version, 13, 0)
    assert len(checked) == 2
