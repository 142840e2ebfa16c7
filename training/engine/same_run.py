"""Whether a saved state may go on: same values, same data; and whether it does so exactly."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from cots_model.config import Frozen
from cots_model.errors import ConfigError
from cots_model.hardware import describe_hardware

log = logging.getLogger(__name__)

RUN_FILE = "run.yaml"

_WHAT = {
    "data": "other data",
    "batch": "another number of pairs per step",
    "frozen": "other weights of a frozen tower or of the image tokenizer",
}


def write_run(folder: Path, config: Frozen) -> None:
    """Keep the resolved configuration of a run in its folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{RUN_FILE}.partial"
    partial.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "utf-8")
    partial.replace(folder / RUN_FILE)


def check_output(
    folder: Path,
    config: Frozen,
    *,
    may_change: Collection[str],
    files: Sequence[str],
    longer: str = "",
) -> None:
    """Make a run's folder, unless something else is in it; before anything is loaded.

    Args:
        folder: empty, not there, or with the resolved configuration of this same run.
        config: of this run.
        may_change: its keys that make no difference, or are checked elsewhere; dots for nesting.
        files: names that the run will write.
        longer: advice where only `epochs` has changed, with `{folder}` in it.

    Raises:
        ConfigError: if it holds another run, files of another kind, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        there = sorted(name for name in files if (folder / name).exists())
        if (folder / RUN_FILE).is_file():
            _check_same_run(folder, config, may_change, longer)
        elif there:
            raise ConfigError(
                f"{folder} holds {', '.join(there[:3])}, which this run would write over; give "
                "another output, or remove the folder"
            )
    except OSError as err:
        raise ConfigError(f"output {folder} cannot be used ({err}); give another folder") from err


def _check_same_run(folder: Path, config: Frozen, may_change: Collection[str], longer: str) -> None:
    """What is there must not go on, or be replaced, under other values."""
    now = _flat(config.model_dump(mode="json"))
    before = _flat(_with_defaults(_read_run(folder / RUN_FILE), type(config)))
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _is_in(key, may_change)
    ]
    if changed:
        shown = ", ".join(f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in changed[:3])
        advice = longer.format(folder=folder) if changed == ["epochs"] else ""
        raise ConfigError(
            f"{folder} holds a run with other values ({shown}); give another output{advice}, or "
            "remove the folder"
        )


def _read_run(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (ValueError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is damaged; give another output, or remove the folder")
    return values


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level, with dots in the keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _is_in(key: str, names: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _with_defaults(values: dict[str, Any], kind: type[Frozen]) -> dict[str, Any]:
    """What an earlier version wrote, with the keys that it did not know yet at their defaults."""
    try:
        return kind.model_validate(values).model_dump(mode="json")
    except ValidationError:  # a key is gone: it shows as changed
        return values


def check_same_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """What a run reads must be what the run before read: pictures, captions, frozen networks.

    Args:
        before: fingerprints and numbers, as the state has them.
        now: the same of this run.

    Raises:
        ConfigError: if they have.
    """
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        raise ConfigError(
            f"the run was stopped with {_WHAT[changed[0]]}; give another output, or what it had"
        )


def sums_of(device: torch.device) -> dict[str, Any]:
    """What may change and decides how sums are ordered and rounded, and so their last digits."""
    hardware = describe_hardware(device)
    return {
        "device": hardware.gpu or hardware.cpu,
        "threads": hardware.threads if hardware.gpu is None else 0,
        "torch": str(torch.__version__),
    }


def warn_of_other_sums(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say that the weights will not be those of an uninterrupted run, bit for bit."""
    changed = [key for key in before if before[key] != now.get(key)]
    if changed:
        shown = ", ".join(f"{key} {before[key]} -> {now.get(key)}" for key in changed)
        log.warning(
            "not bit for bit the run that was stopped, sums are rounded otherwise: %s", shown
        )
