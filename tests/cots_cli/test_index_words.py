"""`cots index` in words: what it found, what a gallery is, which versions there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cots_cli.conftest import Cots, save_noise


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    for seed in range(12):
        save_noise(tmp_path / "src" / f"{seed:02d}.png", seed)
    (tmp_path / "src/broken.jpg").write_text("text")
    return tmp_path / "src"


@pytest.fixture
def root(cots: Cots, source: Path, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    assert build(cots, source, tmp_path / "g", tiny_checkpoint)[0] == 0
    return tmp_path / "g"


def build(cots: Cots, source: Path, root: Path, checkpoint: Path, *options: object):
    return cots("index", "build", source, "--gallery", root, "--checkpoint", checkpoint, *options)


def test_info_reads_well(cots, root, source, tiny_checkpoint):
    status, out, _ = cots("index", "info", root)
    assert status == 0
    manifest = json.loads(cots("index", "info", root, "--json")[1])
    lines = out.splitlines()
    assert lines[0] == f"{root}: version {manifest['version']}"
    facts = dict(re.findall(r"^  (\w+) +(.*)$", out, flags=re.MULTILINE))
    assert facts["items"] == "12 pictures"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["created"])
    assert facts["source"] == str(source)
    assert str(tiny_checkpoint) in facts["model"]
    assert manifest["model_fingerprint"] in out
    assert facts["index"] == "flat"
    assert "recall@10 1.000" in out
    assert re.match(r"0\.0\d\d MB in 5 files, the largest ", facts["size"])
    skipped = root / "versions" / manifest["version"] / "skipped.jsonl"
    assert facts["skipped"] == f"1: unsupported_format 1; listed in {skipped}"
    assert "{" not in out


def test_info_says_why_auto_took_an_index_and_which_share_it_is(
    cots, source, tiny_checkpoint, tmp_path
):
    root = tmp_path / "a"
    build(cots, source, root, tiny_checkpoint, "--index", "auto", "--metadata", metadata(tmp_path))
    _, out, _ = cots("index", "info", root)
    assert "flat (chosen by auto); 12 vectors: an exact search takes" in out
    assert str(tmp_path / "m.csv") in out
    shard = ("--shard", "0/2", "--index", "hnsw", "--part-items", 4)
    build(cots, source, tmp_path / "s", tiny_checkpoint, *shard)
    _, out, _ = cots("index", "info", tmp_path / "s")
    assert "0 of 2; `cots index merge` joins them" in out


def metadata(folder: Path) -> Path:
    (folder / "m.csv").write_text("id,year\n00.png,2020\n")
    return folder / "m.csv"


def test_a_dry_run_says_what_an_update_would_find(cots, root, source):
    save_noise(source / "new.png", 50)
    save_noise(source / "00.png", 51)
    for number in range(1, 12):
        (source / f"{number:02d}.png").unlink()
    status, out, err = cots("index", "update", root, "--dry-run")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"{root}: only looked, nothing is written; version ")
    assert lines[0].endswith("has 12 pictures")
    assert lines[1] == "source: 1 new, 1 changed, 0 unchanged, 11 gone, 1 tried again"
    assert lines[2] == "gone, would be kept (--remove-missing drops them):"
    assert lines[3:13] == [f"  {number:02d}.png" for number in range(1, 11)]
    assert lines[13] == "  and 1 more; --json has them all"
    preview = json.loads(cots("index", "update", root, "--dry-run", "--json")[1])
    assert preview["gone"] == [f"{number:02d}.png" for number in range(1, 12)]
    assert "would be dropped" in cots("index", "update", root, "--dry-run", "--remove-missing")[1]

    status, out, _ = cots("index", "update", root)
    assert "13 pictures indexed" in out
    assert lines[1] in out


def test_an_update_with_nothing_to_do_says_so_and_publishes_nothing(cots, root):
    before = json.loads(cots("index", "versions", root, "--json")[1])
    status, out, _ = cots("index", "update", root)
    assert status == 0
    version = before["versions"][0]["version"]
    assert f"{root}: nothing to do, version {version} stays (12 pictures)" in out
    assert json.loads(cots("index", "versions", root, "--json")[1]) == before
    status, out, _ = cots("index", "update", root, "--index", "hnsw")
    assert "12 pictures indexed" in out


def test_versions_and_rollback(cots, root, source, tiny_checkpoint):
    (source / "00.png").unlink()
    build(cots, source, root, tiny_checkpoint)
    _, out, _ = cots("index", "versions", root)
    title, newest, oldest = out.splitlines()
    assert title == f"{root}: 2 versions"
    assert (newest[0], oldest[0]) == ("*", " ")
    assert "11 pictures" in newest
    assert "12 pictures" in oldest
    assert re.search(r"  0\.0\d\d MB$", newest)
    names = [line.split()[0 if line[0] == " " else 1] for line in (newest, oldest)]

    status, out, _ = cots("index", "rollback", root)
    assert status == 0
    assert out == f"{root}: back to version {names[1]} (12 pictures), from {names[0]}\n"
    assert "rolled back from" in cots("index", "versions", root)[1].splitlines()[1]
    status, out, err = cots("index", "rollback", root)
    assert (status, out) == (2, "")
    assert "keeps no version before" in err
    assert err.count("\n") == 1
    status, out, _ = cots("index", "rollback", root, "--to", names[0], "--verify")
    assert status == 0
    assert f"back to version {names[0]} (11 pictures)" in out
    assert "nothing to do" in cots("index", "rollback", root, "--to", names[0])[1]
    assert cots("index", "verify", root)[0] == 0


def test_rollback_to_what_is_damaged_or_not_kept_is_one_line_and_status_2(
    cots, root, source, tiny_checkpoint
):
    [first] = (root / "versions").iterdir()
    build(cots, source, root, tiny_checkpoint)
    (first / "vectors.npy").write_bytes(b"")
    for arguments, said in ([], "vectors.npy: it holds 0 bytes"), (["--to", "x"], "no version 'x'"):
        status, out, err = cots("index", "rollback", root, *arguments)
        assert (status, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1
    assert "damaged: vectors.npy" in cots("index", "versions", root)[1]


def test_one_of_a_thing_is_said_in_the_singular(cots, source, tiny_checkpoint, tmp_path):
    for path in source.glob("*.png"):
        if path.name > "01.png":
            path.unlink()
    root = tmp_path / "one"
    build(cots, source, root, tiny_checkpoint)
    assert f"{root}: 1 item, version " in cots("index", "delete", root, "01.png")[1]
    assert "1 picture\n" in cots("index", "info", root)[1]
    _, out, _ = cots("index", "duplicates", root)
    assert "0 groups at 0.95 or above among 1 item " in out


def test_an_empty_shard_is_published_with_a_word(cots, source, tiny_checkpoint, tmp_path):
    shard = ("--shard", "7/8", "--part-items", 4)
    status, out, err = build(cots, source, tmp_path / "s", tiny_checkpoint, *shard)
    assert status == 0
    assert "0 pictures indexed" in out
    assert "this shard holds no item; merge it with the others all the same" in err


def test_options_are_named_as_they_are_typed(cots, source, tiny_checkpoint, tmp_path):
    options = ("--segment-seconds", 3)
    status, _, err = build(cots, source, tmp_path / "s", tiny_checkpoint, *options)
    assert status == 2
    assert "leave --segment-seconds out" in err
    options = ("--modality", "video", "--segment-seconds", 0.0001)
    _, _, err = build(cots, source, tmp_path / "s", tiny_checkpoint, *options)
    assert "--segment-seconds is 0.0001" in err
