"""A configuration as a YAML file: what it takes over from another, and `key=value` on top.

config = read_config(TrainConfig, Path("training/configs/ablation/task.yaml"), ["epochs=3"])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cots_model.config import Frozen, parse
from cots_model.errors import ConfigError

T = TypeVar("T", bound=Frozen)

_BASE = "base"
_POWER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def read_config(
    kind: type[T],
    path: Path,
    overrides: Sequence[str] = (),
    *,
    other: Callable[[dict[str, Any]], str | None] | None = None,
) -> T:
    """Read a YAML file as a configuration of `kind` and change single keys.

    With `base: FILE`, a path relative to the file itself, it takes over the keys of that file and
    says only what is different: a mapping key by key, anything else (lists too) as a whole. The
    base's `notes` are of the base alone. A base has no base of its own.

    Args:
        kind: of configuration.
        path: of the file.
        overrides: `key=value`, dots for nesting; later ones win.
        other: tells from the keys which command a file is for, if not for this one.

    Raises:
        ConfigError: for a missing file, bad YAML, an unknown key or a value that is not accepted.
    """
    values, origin = _read_values(path), str(path)
    if _BASE in values:
        base = _base_path(path, values.pop(_BASE))
        values, origin = _merged(_read_base(base, path), values), f"{path} with base {base}"
    if other is not None and (command := other(values)):
        raise ConfigError(f"{path} is the file of another command; use `{command}`")
    if overrides:
        origin = f"{origin} with {' '.join(overrides)}"
    for override in overrides:
        _override(values, override)
    return parse(kind, values, origin=origin)


def _read_values(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError as err:
        raise ConfigError(f"there is no file {path}; training/configs holds examples") from err
    except (OSError, ValueError, yaml.YAMLError) as err:
        raise ConfigError(f"{path} cannot be read as YAML ({err}); see training/configs") from err
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no keys; see training/configs for examples")
    return values


def _base_path(path: Path, base: object) -> Path:
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: base is {base!r}; name a YAML file, relative to this one")
    return path.parent / base


def _read_base(path: Path, asked: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{asked} names the base {path}, and there is no such file")
    values = _read_values(path)
    values.pop("notes", None)
    if _BASE in values:
        raise ConfigError(
            f"{path} is a base and names one itself ({values[_BASE]}); write its keys out"
        )
    return values


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merged(below, value)
        merged[key] = value
    return merged


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no override; write key=value, such as epochs=3")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {parent} has no keys below it")
    try:
        values[last] = _number_or_value(yaml.safe_load(text))
    except (ValueError, yaml.YAMLError) as err:
        raise ConfigError(f"{override!r}: the value is no YAML ({err})") from err


def _number_or_value(value: object) -> object:
    """YAML 1.1 reads 1e-4 as a string; people mean a number."""
    return float(value) if isinstance(value, str) and _POWER.fullmatch(value) else value
