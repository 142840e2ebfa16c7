"""`cots serve --check`: the same verdict as serving, without a socket."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cots_cli.serve import command
from cots_model.errors import InputError

pytestmark = pytest.mark.usefixtures("own_logging")


def check(*arguments: object) -> tuple[int, str]:
    """Exit status and what stands on stdout."""
    given = ["--check", "--device", "cpu", *map(str, arguments)]
    with CliRunner().isolation() as streams:
        status = command.main(given, standalone_mode=False)
        out = streams[0].getvalue().decode()
    assert isinstance(status, int)
    return status, out


def test_check_tells_settings_model_and_galleries(root, checkpoint, encoder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # nothing listens, so nothing is refused
        port = taken.getsockname()[1]
        status, out = check("--galleries", root, "--checkpoint", checkpoint, "--port", port)
    assert status == 0
    assert out.splitlines()[-1] == "ready to serve"
    assert f"127.0.0.1:{port}, no API keys" in out
    assert "gallery   pets: 21 items (image), flat" in out
    assert encoder.name in out


def test_check_as_json_never_shows_keys(root, checkpoint, monkeypatch) -> None:
    digest = hashlib.sha256(b"key").hexdigest()
    monkeypatch.setenv("COTS_API_KEY_SHA256", digest)
    status, out = check("--galleries", root, "--checkpoint", checkpoint, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["ok"] is True
    assert found["problems"] == []
    assert found["settings"]["api_keys"] == 1
    assert digest not in out
    assert [gallery["name"] for gallery in found["galleries"]] == ["pets", "shards"]
    assert all(gallery["problem"] is None for gallery in found["galleries"])


@pytest.fixture
def damaged(root: Path, tmp_path: Path) -> Path:
    """A copy of the root whose gallery `shards` has a damaged file."""
    copy = tmp_path / "galleries"
    shutil.copytree(root, copy, symlinks=True)
    [vectors] = (copy / "shards/versions").glob("*/vectors.npy")
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"\0")
    return copy


def test_check_names_the_damaged_gallery(damaged, checkpoint, monkeypatch) -> None:
    status, out = check("--galleries", damaged, "--checkpoint", checkpoint, "--json")
    found = json.loads(out)
    assert status == 2
    assert found["ok"] is False
    assert len(found["problems"]) == 1
    assert "shards" in found["problems"][0]
    assert "vectors.npy" in found["problems"][0]
    monkeypatch.setenv("COTS_REQUIRE_ALL_GALLERIES", "false")  # then a server would be ready
    status, out = check("--galleries", damaged, "--checkpoint", checkpoint)
    assert status == 0
    assert "gallery   shards: refused: " in out


def test_check_refuses_what_serving_refuses(root, checkpoint, tmp_path) -> None:
    for arguments, words in (
        (("--galleries", tmp_path), "holds no gallery"),
        (("--galleries", root, "--checkpoint", tmp_path), "checkpoint"),
        (("--galleries", root, "--host", "0.0.0.0"), "--allow-public"),
    ):
        with pytest.raises(InputError, match=words):
            check(*arguments)


def test_json_is_for_check_alone(root) -> None:
    with pytest.raises(click.UsageError, match="--check"):
        command.main(["--galleries", str(root), "--json"], standalone_mode=False)
