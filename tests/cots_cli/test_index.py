"""`cots index` as people type it."""

import hashlib
import json
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
    assert "images/s" in result.stdout
    assert "skipped: unsupported_format 1" in result.stdout
    assert "ignored: 1 files" in result.stdout
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
    stages = {"read", "decode", "wait", "encode", "write", "total"}
    assert set(report["seconds"]) == stages
    assert report["seconds"]["total"] > report["seconds"]["encode"] > 0
    assert Path(report["skipped_file"]).is_file()


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        (["--modality", "video"], "image"),
        (["--index", "hnsw"], "flat"),
        (["--engine", "ray"], "local"),
        (["--batch-size", "0"], "1<=x"),
    ],
)
def test_build_refuses_what_is_not_there_yet(photos, tmp_path, options, accepted):
    result = run("build", photos, "--gallery", tmp_path / "g", *options)
    assert result.exit_code == 2
    assert accepted in result.stderr
    assert not (tmp_path / "g").exists()


def test_build_refuses_an_unknown_device(photos, tmp_path):
    result = run("build", photos, "--gallery", tmp_path / "g", "--device", "tpu")
    assert "accepted: auto, cpu, cuda, cuda:N" in str(refusal(result))
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("source", ["s3://bucket/photos", "nowhere", "items.parquet"])
def test_build_refuses_sources_before_loading_a_model(tmp_path, source):
    (tmp_path / "items.parquet").write_text("x")
    source = source if "://" in source else tmp_path / source
    result = run("build", source, "--gallery", tmp_path / "g", "--checkpoint", "no-such-model")
    error = refusal(result)
    assert isinstance(error, InputError)
    assert "accepted: a folder of pictures" in str(error)


def test_info_prints_the_manifest(built):
    root, _ = built
    manifest = json.loads(run("info", root, "--json").stdout)
    assert manifest["count"] == 6
    assert manifest["format_version"] == 2
    assert manifest["index"]["kind"] == "flat"
    for name, info in manifest["files"].items():
        data = (root / "versions" / manifest["version"] / name).read_bytes()
        assert info == {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    text = run("info", root).stdout
    assert manifest["model_fingerprint"] in text
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


@pytest.mark.parametrize("name", ["build", "info", "verify"])
def test_help_shows_an_example(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"cots index {name}" in result.stdout
