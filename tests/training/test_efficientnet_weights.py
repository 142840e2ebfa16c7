"""EfficientNet-lite weights from the files their authors published."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models.efficientnet import EfficientNet

from cots_model.errors import InputError
from tests.training.conftest import assert_equal_states
from training.config import InitConfig
from training.image_weights import rename_efficientnet_lite
from training.initialise import initialise


def original_names(net: EfficientNet) -> dict[str, torch.Tensor]:
    """The weights of a timm network as the original EfficientNet-lite files name them."""
    expanding = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    plain = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    named = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    tops = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    for ours, theirs in tops.items():
        for leaf, value in getattr(net, ours).state_dict().items():
            named[f"{theirs}.{leaf}"] = value
    blocks = [block for stage in net.blocks for block in stage]
    for number, block in enumerate(blocks):
        for name, value in block.state_dict().items():
            part, leaf = name.split(".")
            table = expanding if hasattr(block, "conv_pwl") else plain
            named[f"_blocks.{number}.{table[part]}.{leaf}"] = value
    return named


def random_lite0(seed: int) -> EfficientNet:
    torch.manual_seed(seed)
    return timm.create_model("efficientnet_lite0", num_classes=0)


@pytest.fixture(scope="module")
def lite0() -> EfficientNet:
    return random_lite0(1)


def test_rename_gives_exactly_timms_names_and_weights(lite0):
    renamed = rename_efficientnet_lite(original_names(lite0), random_lite0(2))
    assert_equal_states(renamed, lite0.state_dict())


def test_rename_leaves_timms_own_names_alone(lite0):
    assert_equal_states(rename_efficientnet_lite(lite0.state_dict(), lite0), lite0.state_dict())


def test_efficientnet_takes_an_original_file(convolutional, lite0, tmp_path):
    torch.save(original_names(lite0), tmp_path / "lite0.pth")
    for source in (tmp_path, tmp_path / "lite0.pth"):
        convolutional.image.trunk.load_state_dict(random_lite0(2).state_dict())
        initialise(convolutional, InitConfig(image=str(source)))
        assert_equal_states(convolutional.image.trunk.state_dict(), lite0.state_dict())


def test_efficientnet_refuses_weights_of_another_network(convolutional, tmp_path):
    torch.save(original_names(timm.create_model("efficientnet_lite1")), tmp_path / "lite1.pth")
    with pytest.raises(InputError, match="do not fit the tower"):
        initialise(convolutional, InitConfig(image=str(tmp_path)))
    torch.save({"layer1.weight": torch.zeros(3)}, tmp_path / "lite1.pth")
    with pytest.raises(InputError, match="do not fit the tower"):
        initialise(convolutional, InitConfig(image=str(tmp_path)))


def test_efficientnet_refuses_files_that_hold_no_tensors(convolutional, tmp_path):
    path = tmp_path / "x.pth"
    for content in (b"", b"no tensors", b"PK\x03\x04 zip", b".", b"h\x00."):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.pth cannot be loaded"):
            initialise(convolutional, InitConfig(image=str(path)))
    torch.save({1: torch.zeros(1)}, path)
    with pytest.raises(InputError, match="holds dict, not tensors by name; save its state_dict"):
        initialise(convolutional, InitConfig(image=str(path)))
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="holds list, not tensors by name"):
        initialise(convolutional, InitConfig(image=str(path)))


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_efficientnet_never_unpickles_code(convolutional, tmp_path):
    torch.save({"_fc.weight": Evil(tmp_path / "witness")}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="cannot be loaded"):
        initialise(convolutional, InitConfig(image=str(tmp_path / "x.pth")))
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("count", [0, 2])
def test_efficientnet_needs_one_file(convolutional, tmp_path, count):
    for number in range(count):
        (tmp_path / f"{number}.pth").write_bytes(b"")
    with pytest.raises(InputError, match=rf"holds {count} \.pth files; one is needed"):
        initialise(convolutional, InitConfig(image=str(tmp_path)))


def test_original_files_are_for_efficientnets(model, tmp_path):
    with pytest.raises(InputError, match=r"holds 0 \.onnx files; one is needed"):
        initialise(model, InitConfig(image=str(tmp_path)))
