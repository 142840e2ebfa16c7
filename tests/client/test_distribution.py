"""The package by itself: what it needs, what it imports, and that its documents are true."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cots_client
from cots_client.version import __version__
from tests.service.conftest import picture

REPOSITORY = Path(__file__).parents[2]
PACKAGE = Path(cots_client.__file__).parent
PROJECT = tomllib.loads((REPOSITORY / "client" / "pyproject.toml").read_text("utf-8"))["project"]
LOADED = """
import sys
import cots_client
with cots_client.Client() as client:
    print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_client_is_of_the_repository_and_needs_httpx_alone() -> None:
    assert PACKAGE == REPOSITORY / "client" / "cots_client"
    assert PROJECT["dependencies"] == ["httpx>=0.27"]
    assert re.search("(?m)^httpx==", (REPOSITORY / "constraints.txt").read_text("utf-8"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert (PACKAGE / "py.typed").is_file()
    own = (REPOSITORY / "client" / "LICENSE").read_text("utf-8")
    assert own == (REPOSITORY / "LICENSE").read_text("utf-8")


def test_importing_it_loads_no_model_no_service_and_no_numpy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=60,
    )
    loaded = set(done.stdout.split())
    assert {"cots_client", "httpx"} <= loaded
    heavy = {"torch", "numpy", "pydantic", "PIL", "faiss", "fastapi", "starlette", "transformers"}
    ours = {"cots_cli", "cots_model", "index_builder", "service", "training"}
    assert loaded & (heavy | ours) == set()


def test_what_is_exported_is_sorted_and_there() -> None:
    names = cots_client.__all__
    assert len(names) == len(set(names))
    assert names == sorted(names)
    for name in names:
        assert hasattr(cots_client, name), name
    exported = {name for name in vars(cots_client) if name[0].isupper()}
    assert exported <= set(names)


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", ["docs/client.md", "client/README.md"])
def test_examples_run(page, server, tmp_path, monkeypatch, capsys) -> None:
    """With the address, galleries and items of the test's server."""
    monkeypatch.setenv("COTS_URL", server.url)
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("query.jpg", "sunset.jpg")):
        (tmp_path / name).write_bytes(picture(seed))
    found = examples(page)
    assert found
    for code in found:
        for said, here in (
            ("http://127.0.0.1:8000", server.url),
            ('"photos"', '"pets"'),
            ('"a/b.jpg"', '"cat.jpg"'),
        ):
            code = code.replace(said, here)
        exec(compile(code, page, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.count("\n") > 4
    assert (tmp_path / "b.jpg").is_file() == (page == "docs/client.md")


def test_every_method_and_error_is_in_the_documentation() -> None:
    text = (REPOSITORY / "docs" / "client.md").read_text("utf-8")
    methods = [name for name in vars(cots_client.Client) if not name.startswith("_")]
    errors = [name for name in cots_client.__all__ if name.endswith("Error")]
    missing = [name for name in [*methods, *errors] if not re.search(rf"\b{name}\b", text)]
    assert missing == []
