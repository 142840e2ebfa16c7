"""The checkpoint format: a folder, its files, and the fingerprint over them.

    model.safetensors   the weights (float32, float16, or 8-bit rows with a scale each)
    config.json         format version, model configuration, storage, sha256 of every other file
    preprocess.json     how pictures and texts become tensors
    tokenizer.json      the tokenizer
    README.md           the model card

The fingerprint is the sha256 of the configuration and of the hashes of all files but the card: two
checkpoints with equal fingerprints embed alike. Nothing is ever unpickled.
`cots_model.ensemble` puts several such folders into one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cots_model.config import Frozen, ModelConfig, parse
from cots_model.errors import CheckpointError

FORMAT = "cots-checkpoint"
FORMAT_VERSION = 1
ENSEMBLE_FORMAT = "cots-ensemble"
MEMBER_PREFIX = "member-"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
PREPROCESS_FILE = "preprocess.json"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "README.md"
HASHED_FILES = (WEIGHTS_FILE, PREPROCESS_FILE, TOKENIZER_FILE)

Storage = Literal["float32", "float16", "int8"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SCALE = "::scale"
_MIN_QUANTISED = 4096


class CheckpointConfig(Frozen):
    """Contents of `config.json`."""

    format: Literal["cots-checkpoint"] = "cots-checkpoint"
    format_version: Literal[1] = 1
    model: ModelConfig
    storage: Storage = "float32"
    files: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) over the model configuration and all hashed files."""
        model = self.model.model_dump(mode="json", exclude_defaults=True)  # see Frozen
        canonical = json.dumps([model, self.files], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def bundled_folder(name: str) -> Path:
    """Where a checkpoint that ships with this package lies."""
    return Path(str(resources.files("cots_model"))) / "checkpoints" / name


def locate(source: str | Path) -> Path:
    """Find the folder of a checkpoint: a folder, a bundled name, or a hub id (`owner/name`).

    Raises:
        CheckpointError: if it is none of them, or the hub has no such model.
    """
    folder, name = Path(source), str(source)
    if os.path.isdir(folder):  # Path.is_dir raises for names too long
        return folder
    if re.fullmatch(r"[\w.-]+", name) and os.path.isdir(bundled_folder(name)):
        return bundled_folder(name)
    if _HUB_ID.fullmatch(name) and not folder.is_absolute():
        return _download(name)
    raise CheckpointError(
        f"no checkpoint {name!r}; give a folder that holds {CONFIG_FILE}, the bundled 'cots-mini' "
        "or a hub id such as 'owner/name'"
    )


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    names = [*HASHED_FILES, CONFIG_FILE, CARD_FILE]
    wanted = [*names, *(f"{MEMBER_PREFIX}*/{name}" for name in names)]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as err:  # the hub client raises its own, httpx's and OS errors
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise CheckpointError(
            f"no folder {hub_id!r} here, and the hub did not give it ({reason}); "
            "check the name and the connection, or give a folder"
        ) from err


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint.

    Raises:
        CheckpointError: if it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as err:
        raise CheckpointError(
            f"{path.parent} is not a COTS checkpoint: {path.name} is missing"
        ) from err
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"{path} cannot be read as JSON ({err}); copy it again") from err


def read_config(folder: Path) -> CheckpointConfig:
    """Read `config.json` and check every file it names against its sha256.

    Raises:
        CheckpointError: for a foreign folder, a later format, a missing or altered file.
        ConfigError: for unknown or bad keys.
    """
    values = read_json(folder / CONFIG_FILE)
    if isinstance(values, dict) and values.get("format") == ENSEMBLE_FORMAT:
        raise CheckpointError(
            f"{folder} is an ensemble of checkpoints; give one of them, such as "
            f"{folder / MEMBER_PREFIX}0"
        )
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} does not describe a COTS checkpoint; "
            "give a folder written by `cots train` or save_pretrained"
        )
    check_version(folder, values)
    config = parse(CheckpointConfig, values, origin=str(folder / CONFIG_FILE))
    _check_files(folder, config)
    return config


def is_ensemble(folder: Path) -> bool:
    """Whether a folder holds several checkpoints that score together."""
    path = folder / CONFIG_FILE
    values = read_json(path) if path.is_file() else None
    return isinstance(values, dict) and values.get("format") == ENSEMBLE_FORMAT


def check_version(folder: Path, values: dict[str, Any]) -> None:
    """Refuse a later format.

    Raises:
        CheckpointError: naming the format that came and the one that is read.
    """
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint format {values.get('format_version')}; this version reads "
            f"{FORMAT_VERSION}; update cots-retrieval"
        )


def _check_files(folder: Path, config: CheckpointConfig) -> None:
    if set(config.files) != set(HASHED_FILES):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} lists the files {sorted(config.files)}; "
            f"a checkpoint has {sorted(HASHED_FILES)}"
        )
    for name, expected in config.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing; copy it again")
        found = sha256_of(path)
        if found != expected:
            raise CheckpointError(
                f"{path} is damaged or from another checkpoint (sha256 {found[:12]}…, "
                f"{CONFIG_FILE} says {expected[:12]}…); copy the whole folder again"
            )


def write_config(folder: Path, model: ModelConfig, storage: Storage) -> CheckpointConfig:
    """Write `config.json` over the files already in `folder`; call it last."""
    files = {name: sha256_of(folder / name) for name in HASHED_FILES}
    config = CheckpointConfig(model=model, storage=storage, files=files)
    (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n", "utf-8")
    return config


def sha256_of(path: Path) -> str:
    """Sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_weights(path: Path, weights: dict[str, Tensor], storage: Storage) -> None:
    """Write weights as safetensors.

    With `int8`, every matrix is stored as 8-bit integers with one float32 scale per row
    (largest magnitude / 127); vectors stay float32. Counters stay integers, and what float16 cannot
    hold stays float32.
    """
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        weight = weight.detach().cpu().contiguous()
        if not weight.is_floating_point():
            stored[name] = weight
            continue
        weight = weight.float()
        if storage == "float16":
            fits = weight.abs().amax() <= torch.finfo(torch.float16).max
            stored[name] = weight.half() if fits else weight
        elif storage == "float32" or weight.ndim < 2 or weight.numel() < _MIN_QUANTISED:
            stored[name] = weight
        else:
            stored[name], stored[name + _SCALE] = quantise_rows(weight)
    save_file(stored, path, metadata={"format": "pt"})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read what `write_weights` wrote, back to float32 (counters: int64).

    Raises:
        CheckpointError: if the file is no complete safetensors file, or a scale does not fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{path} cannot be read ({err}); copy it again") from err
    weights = {}
    for name, value in stored.items():
        if name.endswith(_SCALE):
            continue
        scale = stored.get(name + _SCALE)
        if scale is not None:
            if not value.ndim or scale.shape != value.shape[:1]:
                raise CheckpointError(
                    f"{path}: {name} is {list(value.shape)} and its scales {list(scale.shape)}; "
                    "one scale a row is needed; copy it again"
                )
            weights[name] = dequantise_rows(value, scale)
        else:
            weights[name] = value.float() if value.is_floating_point() else value
    return weights


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round `[R,...]` float32 to int8 with one scale per row; returns (int8 `[R,...]`, `[R]`)."""
    rows = weight.flatten(1)
    scale_R = (rows.abs().amax(dim=1) / 127.0).clamp_min(1e-12)
    rounded = (rows / scale_R[:, None]).round().clamp(-127, 127).to(torch.int8)
    return rounded.view(weight.shape), scale_R


def dequantise_rows(rounded: Tensor, scale_R: Tensor) -> Tensor:
    """Undo `quantise_rows`, up to half a scale step per value."""
    return rounded.float() * scale_R.view(-1, *[1] * (rounded.ndim - 1))
