"""Whole builds: good and bad input, and builds killed with SIGKILL."""

import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.encoder import Encoder
from cots_model.errors import CotsError, InputError
from cots_model.images import decode_image
from index_builder.gallery import Gallery
from index_builder.indexes.base import IndexRequest
from index_builder.lock import GalleryBusyError, builder_lock
from index_builder.options import BuildOptions
from index_builder.verify import verify_gallery
from tests.index_builder.conftest import save_picture

REPOSITORY = Path(__file__).resolve().parents[2]


def skipped(report) -> dict[str, str]:
    lines = Path(report.skipped_file).read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert all(set(record) == {"id", "uri", "reason", "message"} for record in records)
    assert all(record["message"] and record["uri"].startswith("file:///") for record in records)
    return {record["id"]: record["reason"] for record in records}


def test_build_stores_the_vectors_the_encoder_gives(photos, gallery_root, encoder):
    gallery = Gallery.open(gallery_root, expected_fingerprint=encoder.fingerprint)
    assert gallery.ids() == sorted(gallery.ids())
    assert len(gallery) == 20
    for row in range(20):
        z_1E = encoder.encode_images([decode_image(photos / gallery.item(row).id)])
        np.testing.assert_allclose(gallery.vector(row), z_1E[0], atol=1e-6)
    assert gallery.item(gallery.row("00.png")).metadata == {"caption": "zero"}
    assert not any(verify_gallery(gallery_root).values())
    assert {path.name for path in gallery_root.iterdir()} == {"current", "versions", ".lock"}
    assert len(list((gallery_root / "versions").iterdir())) == 1


def test_build_is_the_same_for_any_number_of_workers(photos, gallery_root, build, tmp_path):
    build(photos, tmp_path / "g", workers=3)
    first, second = (sorted(path.glob("versions/*/*")) for path in (gallery_root, tmp_path / "g"))
    for one, other in zip(first, second, strict=True):
        assert one.name == other.name
        if one.name != "manifest.json":
            assert one.read_bytes() == other.read_bytes()


def make_bad_folder(root: Path) -> None:
    save_picture(root / "good.png", seed=1)
    whole = save_picture(root / "truncated.jpg", seed=2, side=64).read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "text.jpg").write_text("I am a text file")
    (root / "zero.jpg").write_bytes(b"")
    Image.new("RGB", (1, 1), "red").save(root / "one_pixel.png")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(root / "animated.gif", save_all=True, append_images=frames[1:])
    deep = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(deep).save(root / "deep.png")
    Image.new("CMYK", (20, 20), (10, 20, 30, 40)).save(root / "cmyk.jpg")
    (root / "sub").mkdir()
    (root / "sub/loop").symlink_to(root)
    (root / "broken.jpg").symlink_to(root / "nothing.jpg")
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "fifo.jpg")
    Image.new("L", (8000, 7000)).save(root / "bomb.png")


def test_build_of_a_bad_folder_indexes_the_good_and_lists_the_rest(build, tmp_path):
    make_bad_folder(tmp_path / "bad")
    report = build(tmp_path / "bad", tmp_path / "g", workers=2)
    assert Gallery.open(tmp_path / "g").ids() == [
        "animated.gif",
        "cmyk.jpg",
        "deep.png",
        "good.png",
        "one_pixel.png",
    ]
    assert skipped(report) == {
        "truncated.jpg": "truncated",
        "text.jpg": "unsupported_format",
        "zero.jpg": "empty",
        "sub/loop": "symlink_loop",
        "broken.jpg": "broken_symlink",
        "folder.jpg": "not_a_file",
        "fifo.jpg": "not_a_file",
        "bomb.png": "too_many_pixels",
    }
    assert report.skipped == Gallery.open(tmp_path / "g").manifest.skipped
    assert sum(report.skipped.values()) == 8


def test_build_without_any_good_picture_publishes_nothing(build, tmp_path, photos):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/zero.jpg").write_bytes(b"")
    (tmp_path / "bad/text.jpg").write_text("text")
    with pytest.raises(InputError, match=r"empty: 1, unsupported_format: 1"):
        build(tmp_path / "bad", tmp_path / "g")
    assert not (tmp_path / "g").exists()

    build(photos, tmp_path / "g")
    version = Gallery.open(tmp_path / "g").version
    with pytest.raises(InputError):
        build(tmp_path / "bad", tmp_path / "g")
    assert Gallery.open(tmp_path / "g").version == version

    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        build(tmp_path / "none", tmp_path / "g")


def test_a_first_build_that_fails_leaves_nothing_behind(build, tmp_path, monkeypatch):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "zero.jpg").write_bytes(b"")
    with pytest.raises(InputError):
        build(bad, tmp_path / "galleries/new/g")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]

    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError):
        build(bad, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []

    save_picture(bad / "good.png")
    monkeypatch.setattr(Encoder, "encode_pixels", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(bad, tmp_path / "g")
    assert not (tmp_path / "g").exists()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_first_build_that_can_be_gone_on_with_stays(build, tmp_path, photos, monkeypatch):
    encode, calls = Encoder.encode_pixels, []

    def interrupt_late(self: Encoder, img_BCHW: object) -> object:
        calls.append(None)
        return interrupt() if len(calls) == 5 else encode(self, img_BCHW)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_pixels", interrupt_late)
        with pytest.raises(KeyboardInterrupt):
            build(photos, tmp_path / "g")
    assert build(photos, tmp_path / "g").parts_continued >= 1


def test_a_lock_that_is_removed_while_one_waits_for_it_is_made_anew(tmp_path, monkeypatch):
    """The first builder fails and takes its folder away just before the second gets the lock."""
    from index_builder import lock

    root, hold, held = tmp_path / "g", lock._hold, []

    def remove_first(handle, folder):
        if not held:
            held.append(handle)
            shutil.rmtree(folder)
        hold(handle, folder)

    monkeypatch.setattr(lock, "_hold", remove_first)
    with builder_lock(root):
        with pytest.raises(GalleryBusyError), builder_lock(root):
            pass
        assert (root / ".lock").read_text().startswith(f"process {os.getpid()}")


def test_build_of_shards_keeps_keys_captions_and_the_bytes_within_the_shard(
    build, tmp_path, photos
):
    for shard, numbers in (("s-0.tar", range(6)), ("s-1.tar", range(4, 10))):
        with tarfile.open(tmp_path / shard, "w") as archive:
            for number in numbers:
                source = photos / f"{'sub/' if number % 2 else ''}{number:02d}.png"
                archive.add(source, f"k{number}.png")
    report = build(f"{tmp_path}/s-{{0..1}}.tar", tmp_path / "g")
    gallery = Gallery.open(tmp_path / "g")
    assert gallery.ids() == [f"k{number}" for number in range(10)]
    assert skipped(report) == {"k4": "duplicate_id", "k5": "duplicate_id"}
    original = (photos / "sub/05.png").read_bytes()
    row = gallery.row("k5")
    assert gallery.read_content(row) == original
    with gallery.open_content(row) as handle:
        handle.seek(4)
        assert handle.read() == original[4:]
    assert gallery.item(row).uri.endswith("/s-0.tar#k5.png")


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_build_lays_the_metadata_file_over_the_items(build, tmp_path, photos, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": "00.png", "year": 2020, "caption": "new"}, {"id": "no", "year": 1}]
    path = tmp_path / f"meta.{suffix}"
    if suffix == "csv":
        path.write_text("id,year,caption\n00.png,2020,new\nno,1,\n")
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]")
    report = build(photos, tmp_path / "g", metadata=path)
    assert (report.metadata_rows, report.metadata_matched) == (2, 1)
    gallery = Gallery.open(tmp_path / "g")
    assert gallery.item(gallery.row("00.png")).metadata == {"caption": "new", "year": 2020}
    assert gallery.item(gallery.row("02.png")).metadata == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "name,year\na,1\n", "a column `id`"),
        ("m.csv", "id,year\na,1\na,2\n", "comes twice"),
        ("m.json", "{}", "cannot be read as .json"),
        ("m.jsonl", "{", "cannot be read as .jsonl"),
        ("m.parquet", "x", "cannot be read as .parquet"),
        ("m.json", f'[{{"id": "a", "deep": {"[" * 40}{"]" * 40}}}]', "row 1: nested more than 32"),
        ("m.json", "[" * 100_000, "cannot be read as .json"),
        ("m.xlsx", "x", "accepted: .csv, .json"),
    ],
)
def test_build_refuses_a_bad_metadata_file(build, tmp_path, photos, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        build(photos, tmp_path / "g", metadata=tmp_path / name)
    assert not (tmp_path / "g").exists()


def test_build_metadata_by_filename_matches_shard_members(build, tmp_path, photos):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(photos / "00.png", "pictures/a.png")
    (tmp_path / "m.csv").write_text("filename,price\na.png,1.5\n")
    build(tmp_path / "s.tar", tmp_path / "g", metadata=tmp_path / "m.csv")
    assert Gallery.open(tmp_path / "g").item(0).metadata == {"filename": "a.png", "price": 1.5}


def test_build_keeps_two_versions_and_an_open_gallery_goes_on(build, tmp_path, photos):
    build(photos, tmp_path / "g")
    old = Gallery.open(tmp_path / "g")
    query = old.vectors.rows(np.array([0]))
    before = old.search(query, 5)
    reports = [build(photos, tmp_path / "g") for _ in range(2)]
    kept = sorted(path.name for path in (tmp_path / "g/versions").iterdir())
    assert kept == [report.version for report in reports]
    assert Gallery.open(tmp_path / "g").version == reports[-1].version
    after = old.search(query, 5)
    assert np.array_equal(before[0], after[0])
    assert old.item(3).id == Gallery.open(tmp_path / "g").item(3).id


def test_build_refuses_a_second_builder_naming_the_first(build, tmp_path, photos):
    with (
        builder_lock(tmp_path / "g"),
        pytest.raises(GalleryBusyError, match=rf"process {os.getpid()} on \S+ since 2"),
    ):
        build(photos, tmp_path / "g")
    build(photos, tmp_path / "g")


def test_build_refuses_to_publish_into_a_folder_of_other_things(build, tmp_path, photos):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is no gallery"):
        build(photos, tmp_path)
    with pytest.raises(InputError, match="is a file"):
        build(photos, tmp_path / "thesis.txt")


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"workers": -1},
        {"decode_timeout_s": 0},
        {"decode_timeout_s": math.nan},
        {"engine": "ray"},
        *({"modality": "video", "segment_seconds": s} for s in (0, 1e-7, math.inf, math.nan)),
    ],
)
def test_build_options_refuse_numbers_without_meaning(options):
    with pytest.raises(InputError, match="must be"):
        BuildOptions(sources=("x",), gallery=Path("g"), **options)


@pytest.mark.parametrize("limit_bytes", [500, 2600, 4000])  # listing, parts, join
def test_build_on_a_full_disk_is_an_error_and_leaves_the_published_version(
    build, tmp_path, photos, limit_bytes
):
    build(photos, tmp_path / "g")
    version = Gallery.open(tmp_path / "g").version
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        with pytest.raises(CotsError, match="could not be written"):
            build(photos, tmp_path / "g")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Gallery.open(tmp_path / "g").version == version
    assert [path.name for path in (tmp_path / "g/versions").iterdir()] == [version]


def test_build_mends_a_gallery_whose_pointer_is_damaged(build, tmp_path, photos):
    build(photos, tmp_path / "g")
    (tmp_path / "g/current").write_text("damaged")
    report = build(photos, tmp_path / "g")
    assert Gallery.open(tmp_path / "g").version == report.version
    assert len(list((tmp_path / "g/versions").iterdir())) == 2


def test_build_removes_a_version_that_was_never_pointed_at(build, tmp_path, photos):
    reports = [build(photos, tmp_path / "g") for _ in range(2)]
    orphan = tmp_path / "g/versions/20990101T000000.000000Z"
    shutil.copytree(tmp_path / "g/versions" / reports[1].version, orphan)
    third = build(photos, tmp_path / "g")
    kept = sorted(path.name for path in (tmp_path / "g/versions").iterdir())
    assert kept == [reports[1].version, third.version]


def test_build_keeps_the_version_before_although_the_clock_went_back(build, tmp_path, photos):
    root, later = tmp_path / "g", "20990101T000000.000000Z"
    version = build(photos, root).version
    (root / "versions" / version).rename(root / "versions" / later)
    (root / "current").write_text((root / "current").read_text().replace(version, later))
    second, third = build(photos, root).version, build(photos, root).version
    assert later < second < third
    assert {path.name for path in (root / "versions").iterdir()} == {second, third}


@pytest.mark.parametrize("keep", [1, 3])
def test_build_keeps_as_many_versions_as_told(build, tmp_path, photos, keep):
    versions = [build(photos, tmp_path / "g", keep_versions=keep).version for _ in range(4)]
    kept = sorted(path.name for path in (tmp_path / "g/versions").iterdir())
    assert kept == versions[-keep:]


@pytest.mark.parametrize("vectors", ["float16", "int8"])
def test_build_stores_vectors_as_told(build, tmp_path, photos, gallery_root, vectors):
    build(photos, tmp_path / "g", index=IndexRequest(vectors=vectors))
    gallery, exact = Gallery.open(tmp_path / "g"), Gallery.open(gallery_root)
    assert gallery.vectors.stored_NE.dtype == vectors
    tolerance = 1e-3 if vectors == "float16" else gallery.manifest.vectors.scale / 2 + 1e-6
    for row in range(20):
        np.testing.assert_allclose(gallery.vector(row), exact.vector(row), atol=tolerance)
    assert not any(verify_gallery(tmp_path / "g").values())


def test_build_writes_its_recipe_for_later_updates(build, tmp_path, photos, monkeypatch):
    (tmp_path / "m.csv").write_text("id,year\n00.png,2020\n")
    monkeypatch.chdir(photos.parent)
    build(photos.name, tmp_path / "g", metadata=Path(os.path.relpath(tmp_path / "m.csv")))
    recipe = Gallery.open(tmp_path / "g").manifest.recipe
    assert recipe.sources == (str(photos),)
    assert Path(recipe.metadata).samefile(tmp_path / "m.csv")
    assert (recipe.batch_size, recipe.precision, recipe.index) == (4, "float32", "flat")


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
from cots_model.encoder import Encoder
from index_builder.build import Run, finish_run
from index_builder.content import Location
from index_builder.options import BuildOptions
from index_builder.progress import Progress
from index_builder.lock import builder_lock
from index_builder.sources.entry import Candidate, ReaderCounts, Skip

class Texts:
    name, roots, counts = "texts", (), ReaderCounts()

    def read(self):
        for number in range(int(sys.argv[3])):
            name = f"{number * 7919 % 1000003:07d}"
            text = f"a dog and {number % 1000} cats in the snow"
            metadata = {"caption": text * 3, "year": number}
            uri = f"file:///somewhere/{name}"
            yield Candidate(name, uri, Location("/x"), name, metadata, text=text)
            if number % 10 == 0:
                yield Skip(name, uri, "empty", "a message of some length, as they are")

root = Path(sys.argv[2])
options = BuildOptions(sources=("texts",), gallery=root, modality="text", batch_size=256)
encoder = Encoder.load(sys.argv[1], device="cpu")
with builder_lock(root):
    report = finish_run(Run(options, encoder, Texts(), None, Progress()))
print(report.count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_build_needs_hardly_more_memory_for_four_times_the_items(tmp_path, tiny_checkpoint):
    peaks_mib = []
    for number in (10_000, 40_000):
        arguments = [str(tiny_checkpoint), str(tmp_path / f"{number}"), str(number)]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY_SCRIPT, *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        count, peak_mib = map(int, done.stdout.split())
        assert count == number
        peaks_mib.append(peak_mib)
    # 30,000 items more: as Python objects alone they would take over 60 MiB
    assert peaks_mib[1] - peaks_mib[0] < 45, peaks_mib


def test_verify_of_a_version_that_is_replaced_meanwhile_checks_the_new_one(build, tmp_path, photos):
    root = tmp_path / "g"
    build(photos, root)
    hashed = []

    def replace_it(size_bytes: int) -> None:
        if not hashed:
            build(photos, root, keep_versions=1)
        hashed.append(size_bytes)

    problems = verify_gallery(root, progress=replace_it)
    assert not any(problems.values())
    assert len(hashed) > len(problems) - 1  # the files of both


def test_build_says_what_to_do_when_the_gpu_is_full(build, tmp_path, photos, monkeypatch):
    def full(self: Encoder, img_BCHW: object) -> object:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. And more.")

    monkeypatch.setattr(Encoder, "encode_pixels", full)
    with pytest.raises(CotsError, match=r"a batch of 4 \(CUDA out of memory\); take a smaller"):
        build(photos, tmp_path / "g")
