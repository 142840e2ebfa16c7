"""`benchmarks/table3.py`: every row with every seed, nothing twice."""

import importlib.util
import json
from subprocess import CompletedProcess

import pytest
from click.testing import CliRunner

from tests.conftest import REPOSITORY


@pytest.fixture
def table3(monkeypatch):
    """The script; a run writes scores of its seed instead of training."""
    path = REPOSITORY / "benchmarks/table3.py"
    spec = importlib.util.spec_from_file_location("table3", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.asked, module.failing = [], "nothing"

    def run(command, *, check, stdout, stderr):
        values = dict(word.split("=", 1) for word in command if "=" in word)
        module.asked.append(values)
        if stdout:
            stdout.write("so it went")
        if values["output"].endswith(module.failing):
            return CompletedProcess(command, 1)
        folder = REPOSITORY / values["output"]
        folder.mkdir(parents=True)
        seed = int(values.get("seed", 0))
        scores = dict.fromkeys(module.COLUMNS, 20.0 + 2 * seed)
        lines = [{"step": 0, "loss": 1.0}, {"step": 9, **scores}, {"step": 9, "speed": 1.0}]
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (folder / "states").mkdir()
        return CompletedProcess(command, 0)

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def call(module, *arguments, status=0):
    done = CliRunner().invoke(module.main, [str(word) for word in arguments])
    assert done.exit_code == status, done.output
    return done.output


def test_rows_and_seeds_are_trained_once_and_tabulated(table3, tmp_path):
    output = ["--output", tmp_path, "--seed", 1, "--seed", 2]
    call(table3, *output, "epochs=3")
    table = (tmp_path / "table3.md").read_text()
    assert "| all, filter | " + " | ".join(["23.0 ± 1.4"] * 6) + " | 2 |\n" in table
    start, *rows = table3.asked
    assert start["epochs"] == "0"  # the projections alone
    assert [row["seed"] for row in rows] == ["1"] * 7 + ["2"] * 7
    for row in rows:
        assert row["epochs"] == "3"
        assert row["init.image"] == row["init.text"] == f"checkpoint:{tmp_path / 'start'}"
        assert REPOSITORY.joinpath(row["--config"]).is_file()
    assert call(table3, *output, "epochs=3").strip() == table.strip()
    assert len(table3.asked) == 15
    assert not list(tmp_path.rglob("states"))
    assert "with other KEY=VALUE" in call(table3, *output, "epochs=4", status=1)


def test_a_run_that_fails_does_not_stop_the_others(table3, tmp_path):
    table3.failing = "instance_token-0"
    output = ["--output", tmp_path, "--seed", 0]
    assert "failed: instance_token-0" in call(table3, *output, status=1)
    assert "| + hidden words and patches | - |" in (tmp_path / "table3.md").read_text()
    table3.failing = "nothing"
    assert "| + hidden words and patches | 20.0 |" in call(table3, *output)
    assert len(table3.asked) == 9


def test_rows_that_have_not_run_are_empty(table3, tmp_path):
    output = ["--output", tmp_path]
    call(table3, *output, "--seed", 0)
    (tmp_path / "full-0/done").unlink()
    table = table3._table(tmp_path, [0, 1])
    assert "| instance | 20.0 | 20.0 | 20.0 | 20.0 | 20.0 | 20.0 | 1 |" in table
    assert "| all, filter | - | - | - | - | - | - | 0 |" in table


def test_runs_at_once_have_logs_of_their_own(table3, tmp_path):
    call(table3, "--output", tmp_path, "--seed", 0, "--jobs", 3)
    assert len(table3.asked) == 8
    assert sorted(path.read_text() for path in tmp_path.glob("*.log")) == ["so it went"] * 7
    assert (tmp_path / "table3.md").read_text().count("| 1 |") == 7


def test_rows_start_from_a_given_checkpoint(table3, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    call(table3, "--output", tmp_path / "runs", "--seed", 0, "--start", given)
    assert {row["init.text"] for row in table3.asked} == {f"checkpoint:{given}"}
    assert len(table3.asked) == 7


def test_rows_of_another_start_are_not_taken_for_finished(table3, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "config.json").write_text('{"fingerprint": "a"}')
    output = ["--output", tmp_path / "runs", "--seed", 0, "--start", given]
    call(table3, *output)
    call(table3, *output)
    assert len(table3.asked) == 7
    (given / "config.json").write_text('{"fingerprint": "b"}')
    assert "was trained as another configuration" in call(table3, *output, status=1)
