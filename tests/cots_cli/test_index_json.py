"""What `cots index ... --json` prints is what docs/index_json.md says, key by key."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.cots_cli.conftest import Cots, save_noise

PAGE = (REPOSITORY / "docs/index_json.md").read_text("utf-8")
CHANGES = "cots index update"


def documented(title: str) -> set[str]:
    """The keys in the first column of a section's table."""
    [section] = re.findall(rf"^## .*`{title}`.*\n((?:(?!## ).*\n)*)", PAGE, flags=re.MULTILINE)
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def keys_of(value: dict[str, Any], wanted: set[str]) -> set[str]:
    """Its keys; of those whose own keys are documented, `a.b` or `a[].b`, these instead."""
    found = set()
    for key, inner in value.items():
        if any(name.startswith(f"{key}.") for name in wanted):
            found |= {f"{key}.{name}" for name in inner}
        elif any(name.startswith(f"{key}[].") for name in wanted):
            found |= {f"{key}[].{name}" for one in inner for name in one}
        else:
            found.add(key)
    return found


@pytest.fixture
def root(cots: Cots, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    for seed in range(3):
        (tmp_path / "src").mkdir(exist_ok=True)
        save_noise(tmp_path / "src" / f"{seed}.png", seed)
    build(cots, tmp_path, tiny_checkpoint)
    return tmp_path / "g"


def build(cots: Cots, folder: Path, checkpoint: Path) -> dict[str, Any]:
    return printed(
        cots, "build", folder / "src", "--gallery", folder / "g", "--checkpoint", checkpoint
    )


def printed(cots: Cots, *arguments: object) -> dict[str, Any]:
    status, out, err = cots("index", *arguments, "--json")
    assert status == 0, err
    value: dict[str, Any] = json.loads(out)
    return value


def test_build_and_update(cots, root, tmp_path, tiny_checkpoint):
    report = build(cots, tmp_path, tiny_checkpoint)
    wanted = documented("cots index build")
    assert keys_of(report, wanted) == wanted
    assert set(report["seconds"]) < set(re.findall(r"`(\w+)`", PAGE))
    assert documented(CHANGES) < wanted
    assert keys_of(printed(cots, "update", root), wanted) == wanted
    preview = documented("cots index update --dry-run") | documented(CHANGES)
    assert keys_of(printed(cots, "update", root, "--dry-run"), preview) == preview


def test_progress(cots, root, tmp_path):
    save_noise(tmp_path / "src/new.png", 7)
    status, _, err = cots("index", "update", root, "--json")
    assert status == 0
    stages = {json.loads(line)["stage"] for line in err.splitlines()}
    assert {"join", "index", "publish", "done"} <= stages  # the quick ones may tell nothing
    text = (REPOSITORY / "docs/galleries.md").read_text("utf-8")
    [line] = re.findall(r'^\{"event": "progress".*\}$', text, flags=re.MULTILINE)
    for event in map(json.loads, err.splitlines()):
        assert event.keys() == json.loads(line).keys()
        assert f"`{event['stage']}`" in text


def test_delete_and_merge(cots, root, tmp_path):
    wanted = documented("cots index delete` and `cots index merge")
    other = shutil.copytree(root, tmp_path / "other")
    assert printed(cots, "delete", root, "0.png").keys() == wanted
    assert printed(cots, "merge", root, other, "--gallery", tmp_path / "m").keys() == wanted


def test_info(cots, root):
    wanted = documented("cots index info")
    manifest = printed(cots, "info", root)
    assert keys_of(manifest, wanted) == wanted
    told = set(re.findall(r"`(\w+)`", PAGE))
    for inner in (manifest["recipe"], manifest["index"]["measured"], *manifest["files"].values()):
        assert set(inner) <= told


def test_versions_rollback_and_verify(cots, root, tmp_path, tiny_checkpoint):
    build(cots, tmp_path, tiny_checkpoint)
    for command in ("versions", "rollback", "verify"):
        wanted = documented(f"cots index {command}")
        assert keys_of(printed(cots, command, root), wanted) == wanted


def test_export():
    """The command itself is tested with a server; what it prints is this."""
    from index_builder.milvus.options import ExportReport

    assert set(ExportReport.__dataclass_fields__) == documented("cots index export")


def test_every_command_is_documented():
    from cots_cli.index import command

    assert {
        name for name in command.list_commands(None) if f"`cots index {name}`" not in PAGE
    } == set()
