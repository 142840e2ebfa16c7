"""Exports: continued where they were killed, refused where the collection is not theirs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cots_model.errors import CotsError, GalleryError, InputError
from index_builder.filter import parse_filter
from index_builder.gallery import Gallery, read_manifest
from index_builder.manifest import MANIFEST_FILE, METADATA_FILE
from index_builder.milvus.address import parse_address
from index_builder.milvus.client import MilvusClient, MilvusError, connect
from index_builder.milvus.collection import MAX_BATCH_ROWS, batches, to_row
from index_builder.milvus.export import export_gallery
from index_builder.milvus.open import open_collection
from index_builder.milvus.options import ExportOptions, ExportReport
from index_builder.publish import Pointer, publish
from index_builder.search import search_gallery
from index_builder.verify import verify_gallery
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors

COUNT = 2_500


def make(root: Path, count: int = 40, *, seed: int = 0) -> Path:
    items = plain_items([f"{n:06d}.jpg" for n in range(count)])
    return publish_gallery(root, unit_vectors(count, seed=seed), items)


def export(source: Path, url: str, target: Path, **options: object) -> ExportReport:
    return export_gallery(ExportOptions(gallery=source, to=url, target=target, **options))


def rows_of(client: MilvusClient) -> list[int]:
    return sorted(int(row["row"]) for row in client.query("row >= 0", ["row"], strong=True))


def test_export_publishes_a_gallery_without_vectors_and_secrets(lite, tmp_path, monkeypatch):
    monkeypatch.setenv("COTS_MILVUS_TOKEN", "root:hunter2")
    source = make(tmp_path / "source")
    report = export(source, f"{lite}/photos", tmp_path / "target")
    assert (report.count, report.written) == (40, 40)
    folder, manifest = read_manifest(tmp_path / "target")
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "skipped.jsonl",
        "excluded.jsonl",
        "metadata.parquet",
    }
    assert "hunter2" not in (folder / "manifest.json").read_text()
    assert manifest.index.kind == "milvus"
    assert manifest.index.parameters["collection"] == "photos"
    assert manifest.index.parameters["fingerprint"] == report.fingerprint
    before = read_manifest(source)[1]
    for name in ("modality", "dim", "count", "model_fingerprint", "roots", "recipe", "skipped"):
        assert getattr(manifest, name) == getattr(before, name)


def test_export_of_videos_keeps_the_frames_beside_the_manifest(lite, tmp_path):
    items = plain_items(["a.mp4", "b.mp4"])
    source = publish_gallery(tmp_path / "source", unit_vectors(2), items, modality="video")
    export(source, f"{lite}/clips", tmp_path / "target")
    folder, manifest = read_manifest(tmp_path / "target")
    assert manifest.modality == "video"
    assert {"frames.npy", "frame_times.npy"} < set(manifest.files)
    assert (folder / "frames.npy").is_file()


def test_export_again_writes_nothing_and_publishes_a_new_version(lite, tmp_path):
    source = make(tmp_path / "source")
    first = export(source, f"{lite}/photos", tmp_path / "target")
    second = export(source, f"{lite}/photos", tmp_path / "target")
    assert second.written == 0
    assert second.version > first.version
    assert second.fingerprint == first.fingerprint
    assert len(Gallery.open(tmp_path / "target")) == 40


def test_export_writes_only_the_batches_that_are_missing(lite, tmp_path):
    source = make(tmp_path / "source", COUNT)
    export(source, f"{lite}/photos", tmp_path / "target")
    client = connect(parse_address(f"{lite}/photos"))
    client._client.delete("photos", filter="row >= 1200 and row < 1300")
    with pytest.raises(MilvusError, match=r"holds 2,400 rows.*counts 2,500"):
        Gallery.open(tmp_path / "target")
    report = export(source, f"{lite}/photos", tmp_path / "target")
    assert report.written == MAX_BATCH_ROWS
    assert rows_of(client) == list(range(COUNT))
    assert not any(verify_gallery(tmp_path / "target").values())


@pytest.mark.slow
def test_export_that_is_killed_is_continued(start_server, tmp_path):
    server = start_server()
    source = make(tmp_path / "source", 12_000)
    url = f"{server.url}/photos"
    command = [sys.executable, "-m", "cots_cli.main", "index", "export", str(source), "--to", url]
    command += ["--gallery", str(tmp_path / "target"), "--json"]
    client = None
    for killed_at in (2_000, 6_000):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            assert process.poll() is None, process.stderr.read()
            client = client or connect(parse_address(url))
            if client.properties() is not None and count(client) >= killed_at:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        assert count(client) < 12_000
        with pytest.raises(GalleryError, match="no finished version"):
            Gallery.open(tmp_path / "target")
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["written"] < 12_000 - 5_000
    opened = Gallery.open(tmp_path / "target")
    query_QE = unit_vectors(3, seed=5)
    expected = Gallery.open(source).search(query_QE, 10)
    for found, wanted in zip(opened.search(query_QE, 10), expected, strict=True):
        assert np.array_equal(found, wanted)


def count(client: MilvusClient) -> int:
    """Rows that were written, also where the collection is not loaded."""
    stats = client._client.get_collection_stats("photos", timeout=10)
    return int(stats["row_count"])


def test_export_refuses_a_foreign_collection_unless_told_to_replace_it(lite, tmp_path):
    source = make(tmp_path / "source")
    client = connect(parse_address(f"{lite}/photos"))
    client._client.create_collection("photos", dimension=4)
    with pytest.raises(MilvusError, match=r"was not made by `cots index export`.*--replace"):
        export(source, f"{lite}/photos", tmp_path / "target")
    assert client.properties() is not None
    with pytest.raises(GalleryError, match="no gallery at"):
        Gallery.open(tmp_path / "target")
    export(source, f"{lite}/photos", tmp_path / "target", replace=True)
    assert len(Gallery.open(tmp_path / "target")) == 40


def test_export_refuses_another_gallerys_collection_naming_both(lite, tmp_path):
    first = export(make(tmp_path / "a"), f"{lite}/photos", tmp_path / "a-milvus")
    other = make(tmp_path / "b", seed=1)
    with pytest.raises(MilvusError) as caught:
        export(other, f"{lite}/photos", tmp_path / "b-milvus")
    assert first.fingerprint in str(caught.value)
    second = export(other, f"{lite}/photos", tmp_path / "b-milvus", replace=True)
    assert second.fingerprint != first.fingerprint
    with pytest.raises(GalleryError) as refused:
        Gallery.open(tmp_path / "a-milvus")
    assert first.fingerprint in str(refused.value)
    assert second.fingerprint in str(refused.value)


def test_export_of_another_index_is_another_collection(lite, tmp_path):
    source = make(tmp_path / "source")
    export(source, f"{lite}/photos", tmp_path / "target")
    with pytest.raises(MilvusError, match=r"FLAT.*HNSW"):
        export(source, f"{lite}/photos", tmp_path / "target", index="hnsw")


def test_gallery_refuses_a_collection_that_was_dropped(lite, tmp_path):
    source = make(tmp_path / "source")
    export(source, f"{lite}/photos", tmp_path / "target")
    opened = Gallery.open(tmp_path / "target")
    connect(parse_address(f"{lite}/photos")).drop()
    with pytest.raises(GalleryError, match="no collection photos"):
        Gallery.open(tmp_path / "target")
    with pytest.raises(GalleryError, match="photos"):
        opened.search(unit_vectors(1), 3)
    with pytest.raises(GalleryError, match="photos"):
        opened.item(0)


def test_verify_finds_a_row_that_was_changed(lite, tmp_path):
    source = make(tmp_path / "source")
    export(source, f"{lite}/photos", tmp_path / "target")
    opened = Gallery.open(source)
    client = connect(parse_address(f"{lite}/photos"))
    client.upsert([to_row(7, replace(opened.item(7), uri="file:///other"), opened.vector(7))])
    problems = verify_gallery(tmp_path / "target")
    [name] = [name for name, problem in problems.items() if problem]
    assert name == f"{lite}/photos"
    assert "content" in str(problems[name])


def test_export_refuses_targets_and_galleries_that_it_cannot_take(lite, tmp_path):
    source = make(tmp_path / "source")
    with pytest.raises(InputError, match="folder of its own"):
        export(source, f"{lite}/photos", source)
    with pytest.raises(InputError, match="accepted: flat, hnsw, ivf_flat"):
        export(source, f"{lite}/photos", tmp_path / "target", index="ivfpq")
    export(source, f"{lite}/photos", tmp_path / "target")
    with pytest.raises(InputError, match="in Milvus already"):
        export(tmp_path / "target", f"{lite}/again", tmp_path / "again")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(InputError, match="is no gallery"):
        export(source, f"{lite}/photos", tmp_path / "full")


def test_manifest_that_does_not_say_where_is_refused(lite, tmp_path):
    source = make(tmp_path / "source")
    export(source, f"{lite}/photos", tmp_path / "target")
    manifest = read_manifest(tmp_path / "target")[1]
    index = manifest.index.model_copy(update={"parameters": {"uri": lite}})
    with pytest.raises(GalleryError, match="lacks collection, fingerprint, index_type, max_norm"):
        open_collection(manifest.model_copy(update={"index": index}))


@pytest.mark.parametrize("values", [{"id": "x" * 70_000}, {"metadata": {"long": "x" * 16_000_000}}])
def test_items_that_milvus_cannot_take_are_named(values):
    [item] = plain_items(["a"])
    with pytest.raises(InputError, match=r"Milvus takes 65,535 and 15,360,000"):
        to_row(0, replace(item, **values), unit_vectors(1)[0])


def test_batches_are_bounded_by_rows_and_by_bytes():
    small, large = plain_items(["a", "b"])
    large = replace(large, metadata={"text": "x" * 3_000_000})
    vector_E = unit_vectors(1)[0]
    rows = [to_row(n, small, vector_E) for n in range(2_500)]
    assert [len(batch) for batch in batches(rows)] == [1000, 1000, 500]
    rows = [to_row(n, large, vector_E) for n in range(5)]
    assert [len(batch) for batch in batches(rows)] == [2, 2, 1]
    assert list(batches([])) == []


@pytest.mark.slow
@pytest.mark.parametrize("index", ["hnsw", "ivf_flat"])
def test_approximate_indexes_give_exact_scores_and_are_measured(lite, tmp_path, index):
    count = 900
    source = make(tmp_path / "source", count)
    export(source, f"{lite}/photos", tmp_path / "target", index=index)
    gallery, exact = Gallery.open(tmp_path / "target"), Gallery.open(source)
    measured = gallery.manifest.index.measured
    assert measured.num_queries == 200
    assert measured.recall_at_10 > 0.5
    query_QE = unit_vectors(20, seed=4)
    for k in (1, 10, 300, count):
        scores_QK, rows_QK = gallery.search(query_QE, k)
        exact_QK, exact_rows_QK = exact.search(query_QE, count)
        assert scores_QK.shape == (20, k)
        for scores_K, rows_K, exact_K, exact_rows_K in zip(
            scores_QK, rows_QK, exact_QK, exact_rows_QK, strict=True
        ):
            assert len(set(rows_K.tolist())) == k
            score_of = dict(zip(exact_rows_K.tolist(), exact_K.tolist(), strict=True))
            assert scores_K.tolist() == [score_of[row] for row in rows_K.tolist()]
            assert (np.diff(scores_K) <= 0).all()


def test_lite_file_that_another_process_has_open_is_refused(lite, tmp_path):
    source = make(tmp_path / "source")
    export(source, f"{lite}/photos", tmp_path / "target")
    script = "import sys; from cots_cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "index", "verify", str(tmp_path / "target")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "open in another process" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_client_library_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(CotsError, match=r"pip install 'cots-retrieval\[milvus\]'"):
        export(make(tmp_path / "source"), "milvus://127.0.0.1:1/photos", tmp_path / "target")


def test_client_library_is_imported_for_milvus_only():
    script = (
        "import sys, index_builder.gallery, index_builder.verify, index_builder.search, "
        "cots_cli.main; sys.exit(any('milvus' in name for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


def test_lite_file_in_a_folder_that_is_not_there_is_refused(tmp_path):
    path = os.path.join(tmp_path, "nowhere", "x.db")
    with pytest.raises(MilvusError, match="no folder"):
        connect(parse_address(f"milvus://{path}/photos"))


def test_a_shard_is_refused_before_anything_is_written(photos, build, tmp_path):
    build(photos, tmp_path / "part", shard=(0, 2))
    with pytest.raises(InputError, match=r"holds shards \[0\] of 2; merge all of them"):
        export(tmp_path / "part", f"milvus://{tmp_path}/lite.db/photos", tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "lite.db").exists()


def test_a_gallery_exported_without_metadata_columns_is_searched_but_not_filtered(lite, tmp_path):
    source, target = make(tmp_path / "source"), tmp_path / "target"
    export(source, f"{lite}/photos", target)
    folder, manifest = read_manifest(target)
    (folder / METADATA_FILE).unlink()
    files = {name: info for name, info in manifest.files.items() if name != METADATA_FILE}
    data = manifest.model_copy(update={"files": files}).to_bytes()
    (folder / MANIFEST_FILE).write_bytes(data)
    publish(target, folder, Pointer(manifest.version, hashlib.sha256(data).hexdigest()))
    gallery = Gallery.open(target)
    assert len(search_gallery(gallery, unit_vectors(1), k=5)[0]) == 5
    with pytest.raises(InputError, match=r"without its metadata columns .* export it again"):
        search_gallery(gallery, unit_vectors(1), k=5, where=parse_filter({"a": {"eq": 1}}))
