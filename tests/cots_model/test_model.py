"""The whole model: its joint space, and loading without side effects."""

import pytest
import torch

from cots_model.errors import ConfigError
from cots_model.model import CotsModel, unit
from cots_model.testing import make_tiny_checkpoint, tiny_model_config


def test_embeddings_are_float32_unit_vectors(model, preprocess, img_BCHW):
    tok_BL, mask_BL = preprocess.text(["a dog", "a cat", "snow"])
    for z_BE in (model.encode_image(img_BCHW), model.encode_text(tok_BL, mask_BL)):
        assert z_BE.shape == (3, 32)
        assert z_BE.dtype == torch.float32
        assert z_BE.std() > 0.01
        torch.testing.assert_close(z_BE.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)


def test_embeddings_stay_float32_under_bf16_autocast(model, preprocess, img_BCHW):
    with torch.autocast("cpu", torch.bfloat16):
        image_BE = model.encode_image(img_BCHW)
        text_BE = model.encode_text(*preprocess.text(["a dog"]))
    for z_BE in (image_BE, text_BE):
        assert z_BE.dtype == torch.float32
        torch.testing.assert_close(z_BE.norm(dim=1), torch.ones(len(z_BE)), rtol=0, atol=1e-6)
    torch.testing.assert_close(image_BE, model.encode_image(img_BCHW), rtol=0, atol=0.1)


def test_embeddings_are_the_normalised_linear_map_of_the_feature(model, img_BCHW):
    feature_BD = model.image.feature(img_BCHW)
    mapped_BE = feature_BD @ model.image_projection.weight.T + model.image_projection.bias
    expected_BE = mapped_BE / mapped_BE.pow(2).sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(model.encode_image(img_BCHW), expected_BE, rtol=0, atol=1e-6)


def test_unit_of_zero_is_finite():
    assert torch.isfinite(unit(torch.zeros(1, 4))).all()


def test_from_pretrained_gives_evaluation_mode(model):
    assert not any(module.training for module in model.modules())


def test_from_pretrained_leaves_the_random_state_alone(tiny_checkpoint):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    CotsModel.from_pretrained(tiny_checkpoint)
    assert torch.equal(torch.rand(3), expected)


def test_saving_and_loading_gives_the_same_embeddings(model, preprocess, img_BCHW, tmp_path):
    model.save_pretrained(tmp_path / "deep/folder", preprocess, card="")
    again = CotsModel.from_pretrained(tmp_path / "deep/folder")
    assert torch.equal(again.encode_image(img_BCHW), model.encode_image(img_BCHW))
    assert again.config == model.config


def test_embed_dim_is_as_configured(tmp_path):
    folder = make_tiny_checkpoint(tmp_path / "c", embed_dim=7)
    z_BE = CotsModel.from_pretrained(folder).encode_image(torch.zeros(1, 3, 32, 32))
    assert z_BE.shape == (1, 7)


def test_model_refuses_a_configuration_that_cannot_be_built():
    config = tiny_model_config(100)
    broken = config.model_copy(update={"text": config.text.model_copy(update={"arch": "nope"})})
    with torch.device("meta"), pytest.raises(ConfigError, match="'nope'"):
        CotsModel(broken)
