"""The examples of the documentation run as they stand."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.service.conftest import picture

PAGE = Path(__file__).resolve().parents[2] / "docs/compatibility.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # they end unclosed
@pytest.mark.parametrize("name", ["openai", "infinity_client", "clip_retrieval"])
def test_example_runs(serve, mixed, encoder, clip_client, tmp_path, monkeypatch, capsys, name):
    [example] = [text for text in EXAMPLES if f"from {name}" in text]
    monkeypatch.setitem(sys.modules, "clip_retrieval", ModuleType("clip_retrieval"))
    monkeypatch.setitem(sys.modules, "clip_retrieval.clip_client", clip_client)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "query.jpg").write_bytes(picture(1))
    example = example.replace("http://localhost:8000", serve(found=mixed).url)
    scope: dict[str, object] = {}
    exec(example.replace("cots-mini", encoder.name), scope)
    scope.clear()
    gc.collect()
    assert capsys.readouterr().out.strip()
