"""Configurations: all shipped ones build, and nothing unknown is accepted."""

import pytest
import torch
import yaml

from cots_model.config import (
    ModelConfig,
    PreprocessConfig,
    load_config,
    parse,
    shipped_config_names,
)
from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from cots_model.testing import tiny_model_config


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", shipped_config_names())
def test_shipped_configs_build(name):
    shipped = load_config(name)
    with torch.device("meta"):
        model = CotsModel(shipped.model)
    assert shipped.model.name == name
    assert model.image.config.image_size == shipped.preprocess.image_size
    assert shipped.preprocess.max_tokens <= model.text.max_tokens
    assert model.image_projection.out_features == shipped.model.embed_dim == 256


def test_cots_base_has_the_papers_size():
    with torch.device("meta"):
        model = CotsModel(load_config("cots-base").model)
        tok_BPD = model.image(torch.zeros(1, 3, 384, 384))
    assert num_parameters(model.image) == 86_090_496
    assert num_parameters(model.text) == 108_891_648
    assert tok_BPD.shape == (1, 577, 768)


def test_load_config_names_what_is_shipped():
    with pytest.raises(ConfigError, match=r"'cots-huge'.*cots-base, cots-mini"):
        load_config("cots-huge")


def test_load_config_reads_a_file_of_the_same_form(tmp_path):
    shipped = load_config("cots-mini")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(shipped.model_dump(mode="json")))
    assert load_config(str(path)) == shipped


@pytest.mark.parametrize("text", ["model: [", "", "- a", "model: {}"])
def test_load_config_refuses_a_bad_file(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_config(str(path))


def test_load_config_refuses_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_config(str(tmp_path / "nowhere.yaml"))


def test_load_config_refuses_two_image_sizes(tmp_path):
    values = load_config("cots-mini").model_dump(mode="json")
    values["preprocess"]["image_size"] += 32
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="image_size"):
        load_config(str(path))


def test_parse_names_every_fault_with_its_place():
    values = tiny_model_config(100).model_dump(mode="json")
    values["image"]["archh"] = "x"
    values["embed_dim"] = 0
    with pytest.raises(ConfigError, match=r"my\.yaml: .*did you mean image\.arch\?") as caught:
        parse(ModelConfig, values, origin="my.yaml")
    assert "embed_dim: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parse_refuses_numbers_that_are_not_finite(value):
    with pytest.raises(ConfigError, match="mean"):
        parse(PreprocessConfig, {"image_size": 8, "mean": (0, 0, value)}, origin="x")


def test_configs_cannot_be_changed():
    config = tiny_model_config(100)
    with pytest.raises(ValueError, match="frozen"):
        config.embed_dim = 3
