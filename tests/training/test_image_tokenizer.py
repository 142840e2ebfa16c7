"""DALL-E's encoder against FLAVA's copy of it, and the labels against a naive computation."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from cots_model.errors import InputError
from training.image_tokenizer import (
    DALLE_VOCAB_SIZE,
    DalleEncoder,
    load_dalle,
    map_pixels,
    rename_dalle,
    unnormalise,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTH, VOCAB = 16, 50


@pytest.fixture(scope="module")
def flava() -> FlavaImageCodebook:
    """The network of 8,192 codes at a sixteenth of its width."""
    torch.manual_seed(0)
    config = FlavaImageCodebookConfig(hidden_size=WIDTH, vocab_size=VOCAB)
    codebook = FlavaImageCodebook(config).eval()
    for parameter in codebook.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    return codebook


@pytest.fixture(scope="module")
def ours(flava) -> DalleEncoder:
    encoder = DalleEncoder(WIDTH, VOCAB)
    encoder.load_state_dict(rename_dalle(flava.state_dict()))
    return encoder.eval()


@pytest.fixture
def pixels_BCHW() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def normalise(pixels_BCHW: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels_BCHW - mean) / std


def openai_name(name: str) -> str:
    """FLAVA's name of a tensor as it stands in OpenAI's encoder.pkl."""
    name = name.replace(".group.", ".").replace("res_path.path", "res_path")
    return name.removesuffix("eight") if name.endswith("weight") else name.removesuffix("ias")


def test_parameters_and_shapes_are_those_of_dalle():
    with torch.device("meta"):
        encoder = DalleEncoder()
        theirs = FlavaImageCodebook(FlavaImageCodebookConfig())
        logits_BVhw = encoder(torch.empty(1, 3, 192, 192))
    weights = encoder.state_dict()
    assert (len(weights), sum(w.numel() for w in weights.values())) == (74, 53_786_240)
    assert logits_BVhw.shape == (1, 8192, 24, 24)
    assert encoder.vocab_size == DALLE_VOCAB_SIZE
    renamed = rename_dalle(theirs.state_dict())
    assert {k: w.shape for k, w in renamed.items()} == {k: w.shape for k, w in weights.items()}


@torch.no_grad()
def test_logits_are_flavas(flava, ours, pixels_BCHW):
    theirs = flava(pixels_BCHW)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours(pixels_BCHW), theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_are_flavas_at_full_size(pixels_BCHW):
    torch.manual_seed(2)
    theirs = FlavaImageCodebook(FlavaImageCodebookConfig()).eval()
    with torch.device("meta"):
        encoder = DalleEncoder()
    encoder.load_state_dict(rename_dalle(theirs.state_dict()), assign=True)
    expected = theirs(pixels_BCHW[:1])
    torch.testing.assert_close(encoder(pixels_BCHW[:1]), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_labels_are_the_naive_pipelines(flava, ours):
    pixels_BCHW = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    half_BCHW = torch.zeros(20, 3, 32, 32)
    for row in range(32):
        for column in range(32):
            square = pixels_BCHW[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            half_BCHW[:, :, row, column] = square.mean(dim=(2, 3))
    expected_Bhw = flava.get_codebook_indices(0.8 * half_BCHW + 0.1)
    labels_Bhw = ours.labels(normalise(pixels_BCHW), MEAN, STD)
    assert labels_Bhw.dtype == torch.int64
    assert labels_Bhw.shape == (20, 4, 4)
    assert len(labels_Bhw.unique()) > 1
    assert torch.equal(labels_Bhw, expected_Bhw)


def test_labels_do_not_depend_on_autocast_or_gradient(ours, pixels_BCHW):
    img_BCHW = normalise(pixels_BCHW).requires_grad_()
    plain = ours.labels(img_BCHW, MEAN, STD)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours.labels(img_BCHW, MEAN, STD), plain)
    assert not plain.requires_grad


def test_pixels_come_back_from_the_normalisation(pixels_BCHW):
    back_BCHW = unnormalise(normalise(pixels_BCHW), MEAN, STD)
    torch.testing.assert_close(back_BCHW, pixels_BCHW, rtol=0, atol=1e-6)
    mapped = map_pixels(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(mapped, torch.tensor([0.1, 0.5, 0.9]))


def test_grid_is_one_token_per_16_pixels(ours):
    assert [ours.grid(side) for side in (16, 224, 384)] == [1, 14, 24]


@pytest.mark.parametrize("side", [0, 8, 100, 385])
def test_sides_that_do_not_divide_are_refused(ours, side):
    with pytest.raises(InputError, match=rf"{side} x {side}; use a multiple of 16"):
        ours.grid(side)


def test_labels_refuse_other_shapes(ours):
    with pytest.raises(InputError, match="40 x 40; use a multiple of 16"):
        ours.labels(torch.zeros(1, 3, 40, 40), MEAN, STD)
    with pytest.raises(InputError, match="not 32 x 16"):
        ours.labels(torch.zeros(1, 3, 16, 32), MEAN, STD)
    for shape in ((3, 32, 32), (0, 3, 32, 32), (1, 1, 32, 32)):
        with pytest.raises(InputError, match="are needed, not"):
            ours.labels(torch.zeros(shape), MEAN, STD)


@pytest.mark.parametrize("kind", ["flava", "whole flava", "openai"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_of_either_naming_load(flava, ours, pixels_BCHW, tmp_path, kind, suffix):
    weights = {name: w.clone() for name, w in flava.state_dict().items()}
    if kind == "openai":
        weights = {openai_name(name): w for name, w in weights.items()}
        assert "blocks.group_2.block_1.res_path.conv_4.w" in weights
        assert {"blocks.input.b", "blocks.output.conv.w", "blocks.group_2.block_1.id_path.b"} <= {
            *weights
        }
    elif kind == "whole flava":
        weights = {f"image_codebook.{name}": w for name, w in weights.items()}
        weights["flava.logit_scale"] = torch.ones(1)
    path = tmp_path / f"dalle{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    loaded = load_dalle(path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, weight in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_half_precision_is_widened(flava, tmp_path):
    save_file({k: w.half() for k, w in flava.state_dict().items()}, tmp_path / "x.safetensors")
    assert load_dalle(tmp_path / "x.safetensors").stem.weight.dtype == torch.float32


class Touch:
    """What a hostile file would do when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_refused_and_not_run(tmp_path, flava):
    with (tmp_path / "encoder.pkl").open("wb") as file:
        pickle.dump(Touch(tmp_path / "owned"), file, protocol=2)
    torch.save(flava, tmp_path / "module.pkl")  # as OpenAI's: a module, not its tensors
    for name in ("encoder.pkl", "module.pkl"):
        with pytest.raises(InputError, match=r"running code from a file is refused.*state_dict"):
            load_dalle(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_foreign_and_damaged_files_are_refused(flava, tmp_path):
    weights = flava.state_dict()
    missing = {k: w for k, w in weights.items() if "group_3.group.block_2" not in k}
    save_file(missing, tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match=r"(?s)not those of DALL-E.*stages\.2\.1\.convs\.0"):
        load_dalle(tmp_path / "missing.safetensors")
    save_file(weights | {"decoder.x": torch.ones(1)}, tmp_path / "more.safetensors")
    with pytest.raises(InputError, match=r"(?s)not those of DALL-E.*decoder\.x"):
        load_dalle(tmp_path / "more.safetensors")
    save_file({"conv.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is it DALL-E's encoder"):
        load_dalle(tmp_path / "other.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds list, not tensors by name"):
        load_dalle(tmp_path / "list.pt")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_cut_and_missing_files_are_refused(flava, tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match="cannot be read"):
        load_dalle(path)
    weights = flava.state_dict()
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"cannot be read \(.*\); copy it again"):
        load_dalle(path)
