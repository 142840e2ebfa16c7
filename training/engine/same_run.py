"""Whether a saved state may go on: same values, same data; and whether it does so exactly."""

from __future__ import annotations

import logging
from collections.abc import Collection
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


def write_run(folder: Path, config: Frozen) -> None:
    """Keep the resolved configuration of a run in its folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{RUN_FILE}.partial"
    partial.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "utf-8")
    partial.replace(folder / RUN_FILE)


def check_same_run(
    folder: Path, states: Path, config: Frozen, *, may_change: Collection[str]
) -> None:
    """A state must not go on under values that would have given another run.

    Args:
        folder: with the resolved configuration that the run before wrote, if there was one.
        states: folder of its states.
        config: of this run.
        may_change: its keys that make no difference, or are checked elsewhere.

    Raises:
        ConfigError: if a value that makes a difference has changed.
    """
    file = folder / RUN_FILE
    if not file.is_file() or not states.is_dir():
        return
    now = config.model_dump(mode="json")
    before = _with_defaults(yaml.safe_load(file.read_text("utf-8")) or {}, type(config))
    changed = [key for key in now if key not in may_change and before.get(key) != now[key]]
    if changed:
        shown = ", ".join(f"{key} {before.get(key)!r} -> {now[key]!r}" for key in changed[:3])
        raise ConfigError(
            f"{folder} holds a run with other values ({shown}); give another output, or "
            f"remove the folder {states} to start again"
        )


def _with_defaults(values: dict[str, Any], kind: type[Frozen]) -> dict[str, Any]:
    """What an earlier version wrote, with the keys that it did not know yet at their defaults."""
    try:
        return kind.model_validate(values).model_dump(mode="json")
    except ValidationError:  # a key is gone: it shows as changed
        return values


def check_same_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Between epochs no place in a stream tells that the data have changed.

    Raises:
        ConfigError: if they have.
    """
    if before != now:
        raise ConfigError(
            f"the run was stopped with other data or another number of pairs per step ({before} -> "
            f"{now}); give another output, or the same data and as many pairs per step"
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
