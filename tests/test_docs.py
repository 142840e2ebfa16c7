"""What the documentation names is there: files, functions, tests, keys, commands."""

import ast
import importlib
import re
import shlex
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import click
import pytest
from pydantic import BaseModel

from cots_cli.main import cli
from cots_model.config import ShippedConfig
from training.config import TrainConfig, load_train_config
from training.tokenizer_config import TokenizerTrainConfig, load_tokenizer_config

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted(path.name for path in (REPOSITORY / "docs").glob("*.md"))
PACKAGES = "benchmarks|client|cots_cli|cots_model|docs|index_builder|service|tests|training"
NAMED = re.compile(rf"(?:{PACKAGES})/[\w./*{{}},-]*(?:::[\w.]+)?")
CONFIGS = REPOSITORY / "training/configs"
COMMAND = re.compile(
    r"^(?:cots|python -m training\.collect|python benchmarks/table3\.py|torchrun) "
)


def text_of(page: str) -> str:
    return (REPOSITORY / "docs" / page).read_text("utf-8")


def quoted(text: str) -> list[str]:
    """What stands in single backticks, outside blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def cells(text: str) -> list[list[str]]:
    """Rows of all tables."""
    return [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes and methods that a file defines, by `Class.method`."""
    found: set[str] = set()

    def walk(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                walk(node.body, f"{prefix}{node.name}.")

    walk(ast.parse(path.read_text("utf-8")).body, "")
    return frozenset(found)


def missing(named: str) -> str:
    """What of `path`, `path::name` or a pattern of paths is not there; empty if all is."""
    place, _, name = named.partition("::")
    if not list(REPOSITORY.glob(place)):
        return f"{place} is no file"
    if name and name not in names_in(REPOSITORY / place):
        return f"{place} has no {name}"
    return ""


def has_key(kind: object, key: str) -> bool:
    """Whether a configuration has a key, dots for nesting."""
    if get_origin(kind) in (Annotated, Union, UnionType, list):
        return any(has_key(inner, key) for inner in get_args(kind))
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return False
    first, _, rest = key.partition(".")
    field = kind.model_fields.get(first)
    return field is not None and (not rest or has_key(field.annotation, rest))


def commands(page: str) -> list[str]:
    """Commands of ours in blocks of code, one line each."""
    blocks = re.findall(r"```\w*\n(.*?)```", text_of(page), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [line.strip().removeprefix("$ ") for line in lines]
    return [line for line in lines if COMMAND.match(line) and "--version" not in line]


ALL_COMMANDS = list(dict.fromkeys((page, line) for page in PAGES for line in commands(page)))


@pytest.mark.parametrize("page", PAGES)
def test_files_functions_and_tests_that_are_named_exist(page):
    names = [name for name in quoted(text_of(page)) if NAMED.fullmatch(name)]
    assert not [said for name in names if (said := missing(name))]


def test_what_is_not_there_would_be_found():
    assert missing("training/losses.py::task_loss") == ""
    assert missing("training/losses.py::InstanceLoss.total") == ""
    assert missing("training/losses.py::tusk_loss") == "training/losses.py has no tusk_loss"
    assert missing("training/loses.py") == "training/loses.py is no file"
    assert missing("training/configs/ablation/*.yaml") == ""
    assert has_key(TrainConfig, "objective.instance.momentum")
    assert has_key(TrainConfig, "data.evaluate.split_file")
    assert not has_key(TrainConfig, "objective.instance.momentun")
    assert not has_key(TrainConfig, "epochs.many")


@pytest.mark.parametrize("page", PAGES)
def test_configurations_that_are_named_exist(page):
    """Also where a table says in which folder they are."""
    names = [name for name in quoted(text_of(page)) if re.fullmatch(r"[\w/*-]+\.ya?ml", name)]
    places = (REPOSITORY, CONFIGS, REPOSITORY / "cots_model/configs")
    assert not [name for name in names if not any(list(place.glob(name)) for place in places)]
    assert page != "training.md" or len(names) > 10


def test_every_shipped_run_is_in_the_table():
    told = " ".join(quoted(text_of("training.md")))
    patterns = [name.replace("*", r".*") for name in told.split() if name.endswith(".yaml")]
    runs = [str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")]
    assert not [name for name in runs if not any(re.fullmatch(p, name) for p in patterns)]


def test_the_paper_map_names_tests_and_keys_that_exist():
    for name in quoted(text_of("paper_map.md")):
        if "/" in name:
            assert NAMED.fullmatch(name), name
        elif re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", name) and name not in ("split", "split_file"):
            kinds = (TrainConfig, TokenizerTrainConfig, ShippedConfig)
            assert any(has_key(kind, name) for kind in kinds), name


def test_the_paper_map_has_every_equation_table_and_figure():
    """With a test for each that has an equation or a table."""
    map_ = text_of("paper_map.md")
    held: dict[str, set[str]] = {}
    for title, wanted in (
        ("Equations", {str(n) for n in range(1, 16)}),
        ("Tables", {"1", "2", "3", "4", "S 1"}),
        ("Figures", {"1", "2", "3", "4", "S 1", "S 2"}),
    ):
        section = map_.split(f"## {title}\n")[1].split("\n## ")[0]
        for row in cells(section)[2:]:
            for number in row[0].strip().split(", "):
                first, _, last = number.partition("-")
                spread = range(int(first), int(last) + 1) if last else [first]
                held.setdefault(title, set()).update(map(str, spread))
            assert "`tests/" in row[-1] or "the same" in row[-1], row
        assert wanted <= held[title]


def test_the_paper_map_says_what_was_chosen_and_which_test_holds_it():
    section = text_of("paper_map.md").split("## What the paper leaves open\n")[1].split("\n## ")[0]
    rows = cells(section)[2:]
    assert len(rows) >= 15
    for open_, chosen, place, test in rows:
        assert open_.strip()
        assert chosen.strip()
        assert "`" in place
        assert "`tests/" in test


def parse(line: str) -> tuple[click.Command, list[str], dict[str, object]]:
    """The command that a line names, and what it was given; options must exist."""
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        words = words[words.index("cots_cli.main") + 1 :]
    elif words[0] == "python":
        module = "training.collect" if words[1] == "-m" else "benchmarks.table3"
        command = importlib.import_module(module).main
        words = words[3 if words[1] == "-m" else 2 :]
        options, rest, _ = command.make_parser(click.Context(command)).parse_args(words)
        return command, rest, options
    else:
        words = words[1:]
    command, ctx = cli, click.Context(cli, info_name="cots")
    while isinstance(command, click.Group):
        _, command, words = command.resolve_command(ctx, words)
        ctx = click.Context(command, parent=ctx)
    options, rest, _ = command.make_parser(ctx).parse_args(list(words))
    return command, rest, options


@pytest.mark.parametrize(("page", "line"), ALL_COMMANDS)
def test_commands_have_the_options_that_are_given(page, line):
    command, rest, options = parse(line)
    assert not rest, f"{page}: {line}"
    required = [p.name for p in command.params if p.required and isinstance(p, click.Option)]
    assert not [name for name in required if name not in options], f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences_exist(page):
    """Also without all that they need, such as `cots evaluate --image-root`."""
    for line in quoted(text_of(page)):
        if line.startswith("cots ") and "|" not in line and "--version" not in line:
            left_out = " VALUE" if line.split()[-1].startswith("--") else ""
            parse(line + left_out)


@pytest.mark.parametrize(
    ("page", "line"), [(p, line) for p, line in ALL_COMMANDS if "training/configs/" in line]
)
def test_commands_that_train_name_files_and_keys_that_exist(page, line, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    command, _, options = parse(line)
    load = load_tokenizer_config if command.name == "tokenizer" else load_train_config
    given = options["overrides"]
    overrides = list(given) if isinstance(given, tuple | list) else []  # click marks what is unset
    config = load(Path(str(options["config_path"])), overrides)
    if command.name == "finetune":
        assert config.init.image.startswith("checkpoint:"), f"{page}: {line}"


def test_shards_of_drawings_that_runs_of_cots_mini_need_have_their_command():
    made = [parse(line)[2]["shard"] for line in commands("training.md") if ".collect " in line]
    runs = ("cots_mini/contrast", "cots_mini/projections", "cots_mini/pretrain")
    sources = [s for run in runs for s in load_train_config(CONFIGS / f"{run}.yaml").data.train]
    needed = {source.path for source in sources if source.path.startswith("shards/")}
    assert set(made) - needed == {"shards/twemoji.tar"}  # to score on
    assert needed <= set(made)


def test_there_are_commands_to_check():
    assert {page for page, _ in ALL_COMMANDS} >= {
        "training.md",
        "galleries.md",
        "deploy.md",
        "http.md",
    }
    assert len(ALL_COMMANDS) > 20
