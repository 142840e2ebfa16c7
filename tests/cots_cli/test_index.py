"""`cots index` as people type it."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cots_cli.index import command
from cots_model.errors import CotsError, GalleryError, InputError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    (root / "broken.jpg").write_text("text")
    (root / "notes.md").write_text("ignored")
    return root


@pytest.fixture(scope="module")
def built(photos, tiny_checkpoint, tmp_path_factory) -> tuple[Path, Result]:
    root = tmp_path_factory.mktemp("galleries") / "g"
    return root, run("build", photos, "--gallery", root, "--checkpoint", tiny_checkpoint)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def refusal(result: Result) -> CotsError:
    """The error that `cots` turns into one line and an exit code."""
    assert isinstance(result.exception, CotsError), result.output
    return result.exception


def test_build_prints_what_was_done_and_where_the_skipped_are(built):
    root, result = built
    assert result.exit_code == 0
    assert "6 pictures indexed" in result.stdout
    assert "continued" not in result.stdout
    assert "pictures/s" in result.stdout
    assert "skipped: unsupported_format 1" in result.stdout
    assert "ignored: 1 file that is no picture, or hidden" in result.stdout
    [listed] = root.glob("versions/*/skipped.jsonl")
    assert str(listed) in result.stdout
    assert result.stderr == ""  # no progress bar where stderr is no terminal


def test_build_prints_its_report_as_json(photos, tiny_checkpoint, tmp_path):
    result = run(
        "build", photos, "--gallery", tmp_path / "g", "--checkpoint", tiny_checkpoint, "--json"
    )
    report = json.loads(result.stdout)
    assert report["count"] == 6
    assert report["skipped"] == {"unsupported_format": 1}
    stages = {"list", "read", "decode", "wait", "encode", "write", "join", "index", "total"}
    assert set(report["seconds"]) == stages
    assert report["seconds"]["total"] > report["seconds"]["encode"] > 0
    assert Path(report["skipped_file"]).is_file()
    assert (report["parts"], report["parts_continued"]) == (1, 0)
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert {event["event"] for event in events} == {"progress"}
    assert [event["stage"] for event in events][-4:] == ["join", "index", "publish", "done"]
    assert {"done": 7, "total": 7, "eta_s": 0.0}.items() <= events[-4].items()


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        (["--modality", "audio"], "'image', 'video', 'text'"),
        (["--index", "lsh"], "'flat', 'hnsw', 'ivf', 'ivfpq', 'cagra', 'auto'"),
        (["--engine", "spark"], "'local', 'ray'"),
        (["--vectors", "int4"], "'float32', 'float16', 'int8'"),
        (["--shard", "2/2"], "accepted: 0/n to n-1/n"),
        (["--shard", "two"], "accepted: 0/n to n-1/n"),
        (["--batch-size", "0"], "1<=x"),
        (["--target-recall", "1.5"], "0<x<=1"),
        (["--keep-versions", "0"], "x>=1"),
    ],
)
def test_build_refuses_values_without_meaning(photos, tmp_path, options, accepted):
    result = run("build", photos, "--gallery", tmp_path / "g", *options)
    assert result.exit_code == 2
    assert accepted in result.stderr
    assert not (tmp_path / "g").exists()


def test_build_refuses_an_unknown_device(photos, tmp_path):
    result = run("build", photos, "--gallery", tmp_path / "g", "--device", "tpu")
    assert "accepted: auto, cpu, cuda, cuda:N" in str(refusal(result))
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "is not there; accepted: a folder"),
        ("items.parquet", "cannot be read as parquet"),
        ("photos.zip", "is of another kind; accepted: a folder"),
    ],
)
def test_build_refuses_sources_before_loading_a_model(tmp_path, source, message):
    for name in ("items.parquet", "photos.zip"):
        (tmp_path / name).write_text("x")
    arguments = ["--gallery", tmp_path / "g", "--checkpoint", "no-such-model"]
    error = refusal(run("build", tmp_path / source, *arguments))
    assert isinstance(error, InputError)
    assert message in str(error)
    assert not (tmp_path / "g").exists()


def test_build_speaks_of_texts_where_it_indexes_texts(tiny_checkpoint, tmp_path):
    (tmp_path / "t.txt").write_text("a dog\n\n\n")
    arguments = ["--gallery", tmp_path / "g", "--checkpoint", tiny_checkpoint, "--modality", "text"]
    result = run("build", tmp_path / "t.txt", *arguments)
    assert "1 text indexed" in result.stdout
    assert "ignored: 2 empty lines" in result.stdout
    assert "texts/s" in result.stdout


def test_info_prints_the_manifest_as_json(built):
    root, _ = built
    manifest = json.loads(run("info", root, "--json").stdout)
    assert manifest["count"] == 6
    assert manifest["format_version"] == 2
    assert manifest["index"]["kind"] == "flat"
    for name, info in manifest["files"].items():
        data = (root / "versions" / manifest["version"] / name).read_bytes()
        assert info == {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    assert isinstance(refusal(run("info", root.parent)), GalleryError)


def test_verify_fails_naming_the_damaged_file(photos, tiny_checkpoint, tmp_path):
    root = tmp_path / "g"
    run("build", photos, "--gallery", root, "--checkpoint", tiny_checkpoint)
    good = run("verify", root, "--json")
    assert good.exit_code == 0
    assert json.loads(good.stdout)["ok"] is True
    assert "6 files are as they were published" in run("verify", root).stdout

    [path] = root.glob("versions/*/vectors.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = run("verify", root, "--json")
    error = refusal(result)
    assert not isinstance(error, InputError)  # a failure: exit code 1
    assert "vectors.npy: its sha256" in str(error)
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert [file["file"] for file in report["files"] if file["problem"]] == ["vectors.npy"]

    (root / "current").write_text("damaged")
    error = refusal(run("verify", root))
    assert not isinstance(error, InputError)
    assert "current is damaged" in str(error)
    assert isinstance(refusal(run("verify", root.parent)), InputError)  # exit code 2


@pytest.mark.parametrize(
    "name",
    ["build", "update", "delete", "merge", "info", "verify", "versions", "rollback"],
)
def test_help_shows_an_example(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"cots index {name}" in result.stdout


def test_update_delete_and_merge_say_what_they_did(photos, tiny_checkpoint, tmp_path):
    import shutil

    source, root = tmp_path / "photos", tmp_path / "g"
    shutil.copytree(photos, source)
    run("build", source, "--gallery", root, "--checkpoint", tiny_checkpoint)

    deleted = run("delete", root, "0.png", "1.png")
    assert "4 items" in deleted.stdout
    assert "deleted: 2" in deleted.stdout
    (tmp_path / "ids.txt").write_text("2.png\n\n")
    result = run("delete", root, "--ids-file", tmp_path / "ids.txt", "--json")
    report = json.loads(result.stdout)
    assert (report["count"], report["deleted"]) == (3, 1)
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert {event["stage"] for event in events} == {"join", "index", "publish"}
    assert "no item '0.png'" in str(refusal(run("delete", root, "0.png")))
    assert "say what to delete" in run("delete", root).stderr

    updated = run("update", root)  # the checkpoint is in the recipe
    assert updated.exit_code == 0, updated.output
    assert "nothing to do" in updated.stdout
    assert "(3 pictures)" in updated.stdout
    assert (
        "source: 0 new, 0 changed, 3 unchanged, 0 gone, 1 tried again, 3 deleted" in updated.stdout
    )
    restored = json.loads(run("update", root, "--restore-deleted", "--json").stdout)
    assert (restored["count"], restored["unchanged"]) == (6, 3)

    (source / "3.png").unlink()
    kept = run("update", root).stdout
    assert "gone, kept (--remove-missing drops them):\n  3.png\n" in kept
    dropped = run("update", root, "--remove-missing").stdout
    assert "5 pictures indexed" in dropped
    assert "gone, dropped:\n  3.png\n" in dropped
    shutil.copy(photos / "3.png", source)
    run("update", root)

    merged = run("merge", root, root, "--gallery", tmp_path / "m")
    assert "skipped: 6 whose id was taken" in merged.stdout
    assert run("verify", tmp_path / "m").exit_code == 0


def test_update_remembers_the_checkpoint_it_was_given(photos, tiny_checkpoint, tmp_path):
    moved = shutil.copytree(tiny_checkpoint, tmp_path / "moved")
    run("build", photos, "--gallery", tmp_path / "g", "--checkpoint", tiny_checkpoint)
    assert run("update", tmp_path / "g", "--checkpoint", moved).exit_code == 0
    assert str(moved) in run("info", tmp_path / "g").stdout


def test_update_and_delete_leave_a_folder_that_is_no_gallery_alone(tmp_path):
    for arguments in (["update"], ["delete"]):
        assert isinstance(refusal(run(*arguments, tmp_path, "x")), GalleryError)
    assert list(tmp_path.iterdir()) == []


def test_build_of_shards_says_which_are_to_be_merged(photos, tiny_checkpoint, tmp_path):
    for number in range(3):
        arguments = ["--checkpoint", tiny_checkpoint, "--part-items", 2, "--batch-size", 2]
        run(
            "build",
            photos,
            "--gallery",
            tmp_path / f"{number}",
            "--shard",
            f"{number}/3",
            *arguments,
        )
    result = run("merge", tmp_path / "2", tmp_path / "0", "--gallery", tmp_path / "m")
    assert "to be merged with: 1" in result.stderr
    result = run("merge", tmp_path / "m", tmp_path / "1", "--gallery", tmp_path / "all", "--json")
    assert json.loads(result.stdout)["missing_shards"] == []
    assert json.loads(result.stdout)["count"] == 6


def test_build_refuses_to_decode_on_a_gpu_that_is_not_there(photos, tiny_checkpoint, tmp_path):
    options = ("--checkpoint", tiny_checkpoint, "--device", "cpu", "--jpeg-decoder", "gpu")
    error = refusal(run("build", photos, "--gallery", tmp_path / "g", *options))
    assert isinstance(error, InputError)
    assert "the model runs on cpu; leave it out" in str(error)
    assert not (tmp_path / "g").exists()
