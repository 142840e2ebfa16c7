"""The folder of an image tokenizer, and which sources there are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from cots_model.errors import CheckpointError, ConfigError, InputError
from training.dvae import Dvae, DvaeConfig
from training.image_tokenizer import DalleEncoder
from training.tokenizer_source import load_dvae, load_tokenizer_model, save_dvae

CONFIG = DvaeConfig(vocab_size=12, grid=4, widths=(8, 16), num_blocks=1, code_dim=6)


def make(seed: int = 0, config: DvaeConfig = CONFIG) -> Dvae:
    torch.manual_seed(seed)
    return Dvae(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_dvae(make(), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def flava(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    codebook = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=8, vocab_size=20))
    codebook.save_pretrained(tmp_path / "flava")
    return tmp_path / "flava"


def edit(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | changes))


def test_a_saved_tokenizer_comes_back(folder):
    original, loaded = make(), load_dvae(folder)
    assert loaded.config == original.config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, weight in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    img_BCHW = torch.randn(2, 3, 32, 32)
    unit = ((0.0,) * 3, (1.0,) * 3)
    assert torch.equal(loaded.labels(img_BCHW, *unit), original.labels(img_BCHW, *unit))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_both_files_have_the_same_readers(folder):
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1


def test_fingerprints_tell_tokenizers_apart(tmp_path):
    first = save_dvae(make(), tmp_path / "a")
    assert save_dvae(make(), tmp_path / "b") == first
    assert save_dvae(make(seed=1), tmp_path / "b") != first
    assert save_dvae(make(), tmp_path / "b") == first


def test_saving_again_replaces_weights_and_size(folder):
    save_dvae(make(seed=1), folder)
    assert torch.equal(load_dvae(folder).code_KD, make(seed=1).code_KD)
    larger = CONFIG.model_copy(update={"vocab_size": 13})
    save_dvae(make(config=larger), folder)
    assert load_dvae(folder).vocab_size == 13


def test_a_save_that_fails_leaves_the_old_tokenizer(folder, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("training.tokenizer_source.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        save_dvae(make(seed=1), folder)
    assert torch.equal(load_dvae(folder).code_KD, make().code_KD)
    assert len(list(folder.iterdir())) == 2


def test_a_flipped_bit_is_refused(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or does not belong"):
        load_tokenizer_model(folder)


def test_cut_and_missing_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer_model(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_tokenizer_model(folder)


def test_weights_of_another_tokenizer_are_refused(folder, tmp_path):
    other = CONFIG.model_copy(update={"grid": 5})  # the same tensors, another grid
    save_dvae(make(config=other), tmp_path / "other")
    (tmp_path / "other/model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not belong to the config\.json beside it"):
        load_dvae(folder)


def test_weights_without_our_hash_are_refused(folder):
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load_dvae(folder)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("{", CheckpointError, "cannot be read as JSON"),
        ("[1]", InputError, "not those of DALL-E|is it DALL-E"),
        ('{"format": "cots-checkpoint"}', InputError, "is no image tokenizer"),
        ('{"format": "cots-image-tokenizer", "format_version": 2}', CheckpointError, "reads 1"),
        (
            '{"format": "cots-image-tokenizer", "format_version": 1}',
            ConfigError,
            "model is missing",
        ),
    ],
)
def test_foreign_configurations_are_refused(folder, text, error, says):
    (folder / "config.json").write_text(text)
    with pytest.raises(error, match=says):
        load_tokenizer_model(folder)


def test_unknown_keys_are_refused(folder):
    edit(folder / "config.json", colour="red")
    with pytest.raises(ConfigError, match="unknown key colour"):
        load_tokenizer_model(folder)


def test_our_loader_refuses_other_folders(flava, tmp_path):
    for other in (flava, tmp_path):
        with pytest.raises(CheckpointError, match="does not describe an image tokenizer"):
            load_dvae(other)


def test_the_source_decides_the_tokenizer(folder, flava):
    ours = load_tokenizer_model(str(folder))
    assert isinstance(ours, Dvae)
    assert (ours.vocab_size, ours.grid(224)) == (12, 4)
    for source in (flava, flava / "model.safetensors"):
        theirs = load_tokenizer_model(str(source))
        assert isinstance(theirs, DalleEncoder)
        assert (theirs.vocab_size, theirs.grid(224)) == (20, 14)


def test_flavas_older_files_load(flava):
    weights = load_file(flava / "model.safetensors")
    torch.save(weights, flava / "pytorch_model.bin")
    (flava / "model.safetensors").unlink()
    assert load_tokenizer_model(flava).vocab_size == 20


def test_a_model_checkpoint_is_no_tokenizer(tiny_checkpoint):
    with pytest.raises(InputError, match="is no image tokenizer; give a folder of 'cots train"):
        load_tokenizer_model(tiny_checkpoint)


def test_empty_folders_and_bare_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="is no image tokenizer"):
        load_tokenizer_model(tmp_path)
    for name in ("nowhere", "/no/such", "a/b/c", ""):
        with pytest.raises(InputError, match="no image tokenizer"):
            load_tokenizer_model(name or tmp_path / "x")


@pytest.mark.parametrize("fails", [False, True])
def test_hub_ids_are_downloaded(flava, monkeypatch, fails):
    def snapshot(hub_id: str, **_: object) -> str:
        if fails:
            raise OSError("offline")
        assert hub_id == "facebook/flava-image-codebook"
        return str(flava)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, name: str(flava / name))
    if fails:
        with pytest.raises(CheckpointError, match=r"the hub did not give it \(offline\)"):
            load_tokenizer_model("facebook/flava-image-codebook")
    else:
        assert load_tokenizer_model("facebook/flava-image-codebook").vocab_size == 20
