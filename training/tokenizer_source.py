"""Where image tokenizers come from: a folder that we wrote, or DALL-E's encoder.

    config.json         format version and size of a tokenizer of ours
    model.safetensors   its float32 weights; their header holds a sha256 over size and weights

Saved again, the weights change in one step, by a rename, and only they know the hash: a reader
meets the old tokenizer or the new one. Weights of another size are removed first, so a mixture is
never taken for whole. Nothing is ever unpickled but tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cots_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from cots_model.config import Frozen, parse
from cots_model.errors import CheckpointError, InputError
from training.dvae import Dvae, DvaeConfig
from training.image_tokenizer import DalleEncoder, load_dalle

FORMAT = "cots-image-tokenizer"
FORMAT_VERSION = 1

_DALLE_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class TokenizerFolderConfig(Frozen):
    """Contents of `config.json`."""

    format: Literal["cots-image-tokenizer"] = "cots-image-tokenizer"
    format_version: Literal[1] = 1
    model: DvaeConfig


def load_tokenizer_model(source: str | Path) -> Dvae | DalleEncoder:
    """Load an image tokenizer, in eval mode and without gradient.

    Args:
        source: a folder of `cots train tokenizer`; a file with DALL-E's encoder under FLAVA's or
            OpenAI's names (see `load_dalle`), or a folder that holds one; or a hub id
            (`owner/name`) of either, such as `facebook/flava-image-codebook`.

    Raises:
        InputError: if there is no such source, or it is damaged or something else.
    """
    name, path = str(source), Path(source)
    if os.path.isfile(path):
        return load_dalle(path)
    if os.path.isdir(path):
        return _load_folder(path)
    if _HUB_ID.fullmatch(name) and not path.is_absolute():
        return _load_folder(_download(name))
    raise InputError(
        f"no image tokenizer {name!r}; give a folder of 'cots train tokenizer', a file with "
        "DALL-E's encoder, or a hub id such as facebook/flava-image-codebook"
    )


def save_dvae(dvae: Dvae, folder: Path) -> str:
    """Write a tokenizer into `folder`, replacing the one that is there; returns its fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    text = TokenizerFolderConfig(model=dvae.config).model_dump_json(indent=2) + "\n"
    weights = {name: w.detach().float().cpu() for name, w in dvae.state_dict().items()}
    digest = _digest(dvae.config, weights)
    partial = folder / f".{WEIGHTS_FILE}.partial-{os.getpid()}"
    try:
        partial.write_bytes(save(weights, metadata={"format": "pt", "sha256": digest}))
        if not _holds(folder / CONFIG_FILE, text):  # of another size: the old weights are void
            (folder / WEIGHTS_FILE).unlink(missing_ok=True)
            (folder / CONFIG_FILE).write_text(text, "utf-8")
        os.replace(partial, folder / WEIGHTS_FILE)
    finally:
        partial.unlink(missing_ok=True)
    return digest


def load_dvae(folder: Path) -> Dvae:
    """Read a folder of `save_dvae`, in eval mode and without gradient.

    Raises:
        CheckpointError: for a foreign folder, a later format, missing or damaged weights.
        ConfigError: for unknown or bad keys.
    """
    values = _read_config(folder)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} does not describe an image tokenizer; give a folder of "
            "'cots train tokenizer'"
        )
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has tokenizer format {values.get('format_version')}; this version reads "
            f"{FORMAT_VERSION}; update cots-retrieval"
        )
    config = parse(TokenizerFolderConfig, values, origin=str(folder / CONFIG_FILE)).model
    weights = _read_weights(folder / WEIGHTS_FILE, config)
    with torch.device("meta"):
        dvae = Dvae(config)
    try:
        dvae.load_state_dict(weights, assign=True)
    except RuntimeError as err:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} is of another network: {err}") from err
    return dvae.eval().requires_grad_(False)


def _load_folder(folder: Path) -> Dvae | DalleEncoder:
    values = _read_config(folder)
    if isinstance(values, dict) and values.get("format") == FORMAT:
        return load_dvae(folder)
    files = [folder / name for name in _DALLE_FILES if (folder / name).is_file()]
    if not files or (isinstance(values, dict) and "format" in values):
        raise InputError(
            f"{folder} is no image tokenizer; give a folder of 'cots train tokenizer' (it holds "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}), or one with {' or '.join(_DALLE_FILES)} of FLAVA"
        )
    return load_dalle(files[0])


def _read_config(folder: Path) -> object:
    path = folder / CONFIG_FILE
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(f"{path} cannot be read as JSON ({err}); copy it again") from err


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _read_weights(path: Path, config: DvaeConfig) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{path} cannot be read ({err}); copy it again") from err
    if _digest(config, weights) != expected:
        raise CheckpointError(
            f"{path} is damaged or does not belong to the {CONFIG_FILE} beside it; copy the whole "
            "folder again"
        )
    return weights


def _digest(config: DvaeConfig, weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name}{weight.dtype}{list(weight.shape)}".encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _download(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[CONFIG_FILE]))
        for name in _DALLE_FILES:  # the first that is there: large, and the same weights
            try:
                return Path(hf_hub_download(hub_id, name)).parent
            except EntryNotFoundError:
                continue
        return folder
    except Exception as err:  # the hub client raises its own, httpx's and OS errors
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise CheckpointError(
            f"no image tokenizer {hub_id!r} here (objective.vision.tokenizer), and the hub did not "
            f"give it ({reason}); make one with `cots train tokenizer`, such as "
            "training/configs/tokenizer_mini_112.yaml for pretrain_mini.yaml, or check the name"
        ) from err
