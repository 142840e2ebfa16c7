"""The console command: help without heavy imports, and every error in one line."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import click
import pytest

from cots_cli import main
from cots_model.errors import CotsError, InputError

HEAVY = ("torch", "faiss", "fastapi", "transformers", "numpy", "pyarrow", "pydantic")


def cots(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cots_cli.main", *args],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | env,
        check=False,
    )


def raising(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


@pytest.fixture
def run_raising(monkeypatch: pytest.MonkeyPatch):
    def run(error: BaseException, args: Sequence[str] = ("index",)) -> int:
        monkeypatch.setattr(main.LazyGroup, "get_command", lambda *_: raising(error))
        return main.run(args)

    return run


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from cots_cli.main import run; status = run(['--help']);"
        f"found = [name for name in {HEAVY!r} if name in sys.modules];"
        "sys.exit(f'imported {found}' if found else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in main.SUB_COMMANDS)


def test_help_answers_in_a_second():
    def elapsed_s() -> float:
        start = time.perf_counter()
        assert cots("--help").returncode == 0
        return time.perf_counter() - start

    assert min(elapsed_s() for _ in range(3)) < 1.0


@pytest.mark.parametrize("name", main.SUB_COMMANDS)
def test_subcommand_help_imports_no_torch(name):
    code = (
        "import sys; from cots_cli.main import run; status = run([sys.argv[1], '--help']);"
        "sys.exit('torch was imported' if 'torch' in sys.modules else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: cots {name}" in done.stdout


def test_version_is_the_packages():
    from importlib.metadata import version

    assert cots("--version").stdout.split()[-1] == version("cots-retrieval")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_every_help_has_an_example_of_its_command(capsys):
    for path in commands(main.cli):
        assert main.run([*path, "--help"]) == 0
        told = capsys.readouterr().out
        assert "Example" in told, path
        assert f"cots {' '.join(path)} " in told.split("Example", 1)[1].replace("\n", " "), path


def test_no_arguments_prints_help():
    done = cots()
    assert done.returncode == 0
    assert "Commands:" in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("serch",), "no command 'serch'; there are: index, serve"),
        (("--colour",), "--colour"),
        (("--log-level", "loud", "index"), "loud"),
        (("index", "info"), "Missing argument 'GALLERY'"),
        (("index", "info", "no/such/gallery"), "no/such/gallery"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(args, says):
    done = cots(*args)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("no such picture"), 2, "Error: no such picture"),
        (CotsError("the disk\nis full"), 1, "Error: the disk is full"),
        (KeyboardInterrupt(), 130, "Error: interrupted"),
        (ZeroDivisionError("by zero"), 1, "Error: unexpected ZeroDivisionError: by zero"),
    ],
)
def test_error_is_one_line_with_its_status(run_raising, capsys, error, status, line):
    assert run_raising(error) == status
    printed = capsys.readouterr().err
    assert line in printed
    assert len(printed.strip().splitlines()) == 1


def test_traceback_is_shown_on_request(run_raising, capsys, monkeypatch):
    monkeypatch.setenv("COTS_TRACEBACK", "1")
    assert run_raising(ZeroDivisionError("by zero")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_closed_pipe_is_silent():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cots_cli.main", "--help"],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 1


def test_log_level_comes_from_flag_over_environment():
    code = (
        "import logging, sys; from cots_cli.main import run; run(sys.argv[1:]);"
        "sys.stdout.write(logging.getLevelName(logging.getLogger().level))"
    )

    def level(*args: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code, *args, "index"],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"COTS_LOG_LEVEL": "ERROR"},
            check=False,
        ).stdout.split()[-1]

    assert level() == "ERROR"
    assert level("--log-level", "debug") == "DEBUG"
