"""What stands beside the packages: project file, constraints, README, container files, make."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cots_cli.main import SUB_COMMANDS
from training.config import load_train_config

REPOSITORY = Path(__file__).resolve().parent.parent


def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]


def pinned() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {normal(name): version for name, version in pins}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_every_direct_dependency():
    extras = project()["optional-dependencies"].values()
    wanted = [*project()["dependencies"], *(line for extra in extras for line in extra)]
    names = {normal(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in wanted}
    assert names - pinned().keys() == set()


def test_dependency_lists_are_sorted():
    for listed in (project()["dependencies"], *project()["optional-dependencies"].values()):
        names = [normal(line.partition(">=")[0]) for line in listed]
        assert names == sorted(names)


def test_readme_is_short_and_names_real_commands_and_files():
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 150
    named = set(re.findall(r"(?m)(?:^|`)cots (\w+)", readme))
    assert {"index", "search", "serve"} <= named <= SUB_COMMANDS.keys()
    targets = {name for name in re.findall(r"\bmake (\w+)", readme) if name.islower()}
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    assert not [name for name in targets if f"\n{name}:" not in makefile]


def test_compose_is_reachable_from_this_machine_only_and_reads_galleries_only():
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text("utf-8"))
    [service] = compose["services"].values()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert all(volume["read_only"] for volume in service["volumes"])
    assert "COTS_API_KEY_SHA256" in service["environment"]


def test_container_settings_are_settings_of_the_service():
    from service.settings import Settings

    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text("utf-8"))
    dockerfile = (REPOSITORY / "Dockerfile").read_text("utf-8")
    names = set(re.findall(r"COTS_([A-Z0-9_]+)=", dockerfile))
    names |= {name.removeprefix("COTS_") for name in compose["services"]["cots"]["environment"]}
    assert len(names) >= 5
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


def test_dockerfile_copies_every_package_and_runs_unprivileged():
    dockerfile = (REPOSITORY / "Dockerfile").read_text("utf-8")
    config = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    packages = config["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert not [name for name in packages if f"COPY {name} {name}\n" not in dockerfile]
    assert re.search(r"^USER \d+", dockerfile, re.MULTILINE)
    assert "/readyz" in dockerfile


def test_setup_refuses_an_old_python_in_one_line(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in (
        "pyproject.toml",
        "client/pyproject.toml",
        "constraints.txt",
        "tests/compat/requirements.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2' && exit\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "-s", "setup", f"PYTHON={old}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "is Python 3.9.2; Python 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_gpu_script_names_data_that_configurations_take():
    """A pattern with braces in a list must be quoted; a dry run replaces these values."""
    lines = (REPOSITORY / "benchmarks/gpu.sh").read_text("utf-8").splitlines()
    given = [line for line in lines if line.startswith(("photos=", "pairs=", "evaluate="))]
    assert len(given) == 3
    script = "\n".join(["DATA=data", *given, 'printf "%s\\n" "$photos" "$pairs" "[$evaluate]"'])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    photos, pairs, evaluate = done.stdout.splitlines()
    config = load_train_config(
        REPOSITORY / "training/configs/ablation_mini/full.yaml",
        [f"data.train={pairs}", f"data.evaluate={evaluate}"],
    )
    assert [source.path for source in config.data.train] == [
        "data/flickr8k/train-{00000..00002}.tar",
        "data/web_pairs/*.tar",
    ]
    assert [source.path for source in config.data.evaluate] == ["data/flickr8k/val-00000.tar"]
    assert yaml.safe_load(photos) == ["data/flickr8k/train-{00000..00002}.tar"]


def test_gpu_script_names_configurations_that_are_there():
    script = (REPOSITORY / "benchmarks/gpu.sh").read_text("utf-8")
    named = set(re.findall(r"training/configs/[\w/]+\.yaml", script))
    assert len(named) >= 5
    assert not [name for name in sorted(named) if not (REPOSITORY / name).is_file()]
