"""A tiny model and its encoder, shared by the tests that do not change them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cots_model.checkpoint import CONFIG_FILE, CheckpointConfig, write_config
from cots_model.encoder import Encoder
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from cots_model.video_track import Track


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_config(folder: Path) -> str:
    """Make `config.json` agree with the files again, as an attacker or a script would."""
    config = CheckpointConfig.model_validate_json((folder / CONFIG_FILE).read_text())
    return write_config(folder, config.model, config.storage).fingerprint


@pytest.fixture(scope="session")
def encoder(tiny_checkpoint: Path) -> Encoder:
    return Encoder.load(tiny_checkpoint, device="cpu")


@pytest.fixture
def model(tiny_checkpoint: Path) -> CotsModel:
    return CotsModel.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="session")
def preprocess(tiny_checkpoint: Path) -> Preprocess:
    return Preprocess.from_pretrained(tiny_checkpoint)


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture
def img_BCHW() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by one for every frame that is decoded."""
    found: list[int] = []
    decode = Track._decode

    def count(self, packet):
        pictures = decode(self, packet)
        found.extend(1 for _ in pictures)
        return pictures

    monkeypatch.setattr(Track, "_decode", count)
    return found
