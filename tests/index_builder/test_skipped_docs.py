"""Every reason for which something is skipped is explained in docs/skipped.md."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = re.compile(r"[a-z]+(_[a-z]+)*")
INTERNAL = {"passed"}  # stands for an entry that needs no decoding; never written
NAMING = {"ContentError", "ImageError", "VideoError", "Failure", "Skip", "_skip", "_replace"}


def reasons_in(source: str) -> set[str]:
    """Literals given as reason to an error or a skip, or returned with a message."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            found += node.args if name in NAMING else []
        if isinstance(node, ast.FunctionDef) and "tuple[str, str]" in returns(node):
            pairs = [n.value for n in ast.walk(node) if isinstance(n, ast.Return)]
            found += [pair.elts[0] for pair in pairs if isinstance(pair, ast.Tuple)]
    literals = [node.value for node in found if isinstance(node, ast.Constant)]
    return {text for text in literals if isinstance(text, str) and CODE.fullmatch(text)}


def returns(function: ast.FunctionDef) -> str:
    return "" if function.returns is None else ast.unparse(function.returns)


def documented() -> set[str]:
    text = (REPOSITORY / "docs/skipped.md").read_text("utf-8")
    return set(re.findall(r"^\| `([a-z_]+)` \|", text, flags=re.MULTILINE))


def test_every_reason_is_documented():
    files = [
        *(REPOSITORY / "index_builder").rglob("*.py"),
        *(REPOSITORY / "cots_model").glob("*.py"),
    ]
    used = set().union(*(reasons_in(path.read_text("utf-8")) for path in files))
    assert {"damaged", "fetch_timeout", "decoder_crashed", "symlinked_folder"} <= used
    assert used - INTERNAL <= documented()


def test_a_reason_that_is_not_documented_would_be_found():
    assert reasons_in('raise ContentError("brand_new", f"{name} is odd")') == {"brand_new"}
    assert reasons_in('Skip(entry.id, entry.uri, "brand_new", "it is")') == {"brand_new"}
    text = 'def f() -> tuple[str, str] | None:\n  return "brand_new", "it is"'
    assert reasons_in(text) == {"brand_new"}
