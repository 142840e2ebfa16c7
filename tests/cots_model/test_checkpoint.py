"""The checkpoint format: what is written, and everything that is refused."""

import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from cots_model.checkpoint import (
    CARD_FILE,
    CONFIG_FILE,
    HASHED_FILES,
    WEIGHTS_FILE,
    dequantise_rows,
    locate,
    quantise_rows,
    read_config,
    read_weights,
    sha256_of,
    write_weights,
)
from cots_model.encoder import Encoder
from cots_model.errors import CheckpointError, ConfigError, InputError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tiny_checkpoint
from tests.cots_model.conftest import edit_json, rewrite_config


def test_save_pretrained_replaces_an_earlier_checkpoint(copy, tmp_path):
    other = make_tiny_checkpoint(tmp_path / "other", seed=3)
    model, preprocess = (cls.from_pretrained(other) for cls in (CotsModel, Preprocess))
    fingerprint = model.save_pretrained(copy, preprocess, card="new")
    assert read_config(copy).fingerprint == fingerprint == read_config(other).fingerprint
    assert (copy / CARD_FILE).read_text() == "new"


@pytest.mark.parametrize("name", HASHED_FILES)
def test_loading_refuses_a_missing_file(copy, name):
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"incomplete: {name} is missing; copy it again"):
        CotsModel.from_pretrained(copy)


@pytest.mark.parametrize("name", HASHED_FILES)
def test_loading_refuses_a_file_of_another_checkpoint(copy, tmp_path, name):
    other = make_tiny_checkpoint(tmp_path / "other", seed=1)
    (copy / name).write_bytes((other / name).read_bytes() + b"\n")
    with pytest.raises(CheckpointError, match=f"{name} is damaged or from another checkpoint"):
        CotsModel.from_pretrained(copy)


def test_loading_refuses_every_flipped_bit_and_cut(copy):
    path = copy / WEIGHTS_FILE
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:-1], whole[:100], whole[:7], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            CotsModel.from_pretrained(copy)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_loading_refuses_cut_weights_that_the_config_vouches_for(copy, length):
    path = copy / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:length])
    rewrite_config(copy)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        CotsModel.from_pretrained(copy)


class Evil:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("dump", [pickle.dumps, None], ids=["pickle", "torch"])
def test_loading_never_unpickles(copy, tmp_path, dump):
    witness = tmp_path / "witness"
    if dump:
        (copy / WEIGHTS_FILE).write_bytes(dump(Evil(witness)))
    else:
        torch.save({"image_projection.bias": Evil(witness)}, copy / WEIGHTS_FILE)
    rewrite_config(copy)
    with pytest.raises(CheckpointError, match="cannot be read"):
        CotsModel.from_pretrained(copy)
    assert not witness.exists()


def test_loading_refuses_a_foreign_folder(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is not a COTS checkpoint: config\.json is missing"):
        CotsModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 50, "[" * 100_000], ids=range(5))
def test_loading_refuses_a_config_that_is_no_json(copy, text):
    (copy / CONFIG_FILE).write_text(text, "latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        CotsModel.from_pretrained(copy)


@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", '{"model_type": "bert"}', '"cots-checkpoint"']
)
def test_loading_refuses_a_foreign_config(copy, text):
    (copy / CONFIG_FILE).write_text(text)
    with pytest.raises(CheckpointError, match="does not describe a COTS checkpoint"):
        CotsModel.from_pretrained(copy)


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_loading_refuses_another_format_version(copy, version):
    edit_json(copy / CONFIG_FILE, format_version=version)
    with pytest.raises(CheckpointError, match=f"format {version}; this version reads 1; update"):
        CotsModel.from_pretrained(copy)


def test_loading_refuses_unknown_keys(copy):
    edit_json(copy / CONFIG_FILE, modle={})
    with pytest.raises(ConfigError, match=r"config\.json: unknown key modle"):
        CotsModel.from_pretrained(copy)


@pytest.mark.parametrize("files", [{}, {"model.safetensors": "0"}, {"../../secret": "0"}])
def test_loading_refuses_another_list_of_files(copy, files):
    edit_json(copy / CONFIG_FILE, files=files)
    with pytest.raises(CheckpointError, match=r"a checkpoint has .*'model\.safetensors'"):
        CotsModel.from_pretrained(copy)


def damage_missing(weights):
    del weights["image_projection.bias"]


def damage_unknown(weights):
    weights["image.extra"] = torch.zeros(1)


def damage_shape(weights):
    weights["text_projection.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_missing, "image_projection.bias is missing"),
        (damage_unknown, "image.extra is unknown"),
        (damage_shape, r"text_projection.weight is \[3, 3\], not \[32, 32\]"),
    ],
)
def test_loading_refuses_weights_that_do_not_fit(copy, damage, says):
    weights = load_file(copy / WEIGHTS_FILE)
    damage(weights)
    save_file(weights, copy / WEIGHTS_FILE)
    rewrite_config(copy)
    with pytest.raises(CheckpointError, match=says):
        CotsModel.from_pretrained(copy)


def test_int8_rows_are_within_half_a_step():
    weight = torch.randn(50, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    weight[4] *= 1e-4
    weight[5] *= 1e4
    rounded, scale_R = quantise_rows(weight)
    assert rounded.dtype == torch.int8
    assert rounded.shape == weight.shape
    error_R = (dequantise_rows(rounded, scale_R) - weight).abs().flatten(1).amax(dim=1)
    peak_R = weight.abs().flatten(1).amax(dim=1)
    assert (error_R <= peak_R / 127 / 2 * (1 + 1e-4)).all()
    assert error_R[3] == 0
    assert error_R.max() > 0


@pytest.fixture
def weights():
    rng = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(64, 128, generator=rng),
        "small": torch.randn(4, 4, generator=rng),
        "vector": torch.randn(128, generator=rng),
        "counter": torch.tensor(3_000_000_001),
        "large": torch.tensor([1e6, -3.0]),
    }


def test_float32_storage_is_exact(weights, tmp_path):
    write_weights(tmp_path / "w", weights, "float32")
    for name, value in read_weights(tmp_path / "w").items():
        assert torch.equal(value, weights.pop(name)), name
    assert not weights


def test_float16_storage_rounds_and_never_overflows(weights, tmp_path):
    write_weights(tmp_path / "w", weights, "float16")
    read = read_weights(tmp_path / "w")
    assert read.keys() == weights.keys()
    assert torch.equal(read["matrix"], weights["matrix"].half().float())
    assert torch.equal(read["large"], weights["large"])
    assert torch.equal(read["counter"], weights["counter"])


def test_int8_storage_rounds_matrices_alone(weights, tmp_path):
    write_weights(tmp_path / "w", weights, "int8")
    assert load_file(tmp_path / "w")["matrix"].dtype == torch.int8
    read = read_weights(tmp_path / "w")
    assert read.keys() == weights.keys()
    for name in ("small", "vector", "counter", "large"):
        assert torch.equal(read[name], weights[name]), name
    step_R1 = weights["matrix"].abs().amax(dim=1, keepdim=True) / 127
    error = (read["matrix"] - weights["matrix"]).abs()
    assert (error <= step_R1 / 2 * (1 + 1e-4)).all()
    assert error.max() > 0


def test_int8_storage_with_foreign_scales_is_refused(weights, tmp_path):
    write_weights(tmp_path / "w", weights, "int8")
    stored = load_file(tmp_path / "w")
    save_file(stored | {"matrix::scale": torch.ones(63)}, tmp_path / "w")
    with pytest.raises(CheckpointError, match=r"matrix is \[64, 128\] and its scales \[63\]"):
        read_weights(tmp_path / "w")


@pytest.mark.parametrize(("storage", "tolerance"), [("float16", 1e-2), ("int8", 5e-2)])
def test_smaller_storage_embeds_nearly_alike(
    tiny_checkpoint, tmp_path, img_BCHW, storage, tolerance
):
    model, preprocess = (cls.from_pretrained(tiny_checkpoint) for cls in (CotsModel, Preprocess))
    model.save_pretrained(tmp_path, preprocess, card="", storage=storage)
    smaller = CotsModel.from_pretrained(tmp_path)
    assert smaller.image_projection.weight.dtype == torch.float32
    torch.testing.assert_close(
        smaller.encode_image(img_BCHW), model.encode_image(img_BCHW), rtol=0, atol=tolerance
    )
    assert sha256_of(tmp_path / WEIGHTS_FILE) != sha256_of(tiny_checkpoint / WEIGHTS_FILE)
    assert (tmp_path / WEIGHTS_FILE).stat().st_size < (
        tiny_checkpoint / WEIGHTS_FILE
    ).stat().st_size


@pytest.mark.parametrize(
    "source", ["nonsense", "/nowhere/at/all", "a/b/c", "x" * 5000, "a b", "nul\0", "https://x/y/z"]
)
def test_locate_refuses_nonsense(source):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*bundled 'cots-mini'"):
        locate(source)


def test_locate_refuses_a_file(copy):
    with pytest.raises(CheckpointError, match="give a folder"):
        locate(copy / CONFIG_FILE)


def test_locate_takes_folders_as_text_or_path(tiny_checkpoint):
    assert locate(tiny_checkpoint) == locate(str(tiny_checkpoint)) == tiny_checkpoint


def test_loading_from_the_hub_takes_only_our_files(tiny_checkpoint, monkeypatch, tmp_path):
    asked = []

    def download(hub_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((hub_id, sorted(allow_patterns)))
        return str(tiny_checkpoint)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert Encoder.load("someone/cots-tiny", device="cpu").name == "tiny"
    ours = [*HASHED_FILES, CONFIG_FILE, CARD_FILE]
    of_ensembles = [f"member-*/{name}" for name in ours]
    assert asked == [("someone/cots-tiny", sorted(ours + of_ensembles))]


def test_loading_from_the_hub_says_why_it_failed(monkeypatch, tmp_path):
    def download(hub_id: str, *, allow_patterns: list[str]) -> str:
        raise OSError("no route to host\nlong trace")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"'someone/x' here.*no route to host\); check") as caught:
        Encoder.load("someone/x", device="cpu")
    assert "trace" not in str(caught.value)
