"""Which parameters decay, at which rate, and how the rate runs."""

import itertools

import pytest
import timm
import torch

from cots_model.config import ImageTowerConfig
from cots_model.errors import ConfigError
from cots_model.image_tower import ImageTower
from training.config import OptimiserConfig
from training.optim import freeze_unmoved, lr_factor, make_optimiser, set_lr


def settings_of(model, config):
    """Decay and rate by parameter name."""
    optimiser = make_optimiser(model, config)
    groups = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    return {n: groups[id(p)] for n, p in model.named_parameters() if id(p) in groups}


def test_decay_is_for_matrices_alone(model):
    decay = {n: g["weight_decay"] for n, g in settings_of(model, OptimiserConfig()).items()}
    assert decay.keys() == dict(model.named_parameters()).keys()
    without = {name for name, value in decay.items() if value == 0}
    assert {value for name, value in decay.items() if name not in without} == {0.02}
    for name, parameter in model.named_parameters():
        special = ("bias", "norm", "Norm", "pos_embed", "cls_token", "position_embeddings")
        expected = parameter.ndim <= 1 or any(part in name for part in special)
        assert (name in without) == expected, name
    assert {"image.trunk.cls_token", "image.trunk.pos_embed"} <= without
    assert "text.trunk.embeddings.position_embeddings.weight" in without
    assert "image_projection.weight" not in without


def test_decay_spares_the_norms_of_convolutions():
    tower = ImageTower(ImageTowerConfig(arch="efficientnet_lite0", image_size=64))
    groups = settings_of(tower, OptimiserConfig())
    assert groups["trunk.bn2.weight"]["weight_decay"] == 0
    assert groups["trunk.conv_head.weight"]["weight_decay"] == 0.02


@pytest.mark.parametrize(
    ("arch", "size", "spared"),
    [
        ("vit_pwee_patch16_reg1_gap_256", 64, "trunk.reg_token"),
        ("deit_tiny_distilled_patch16_224", 64, "trunk.dist_token"),
        ("beit_base_patch16_224", 32, "trunk.blocks.3.attn.relative_position_bias_table"),
        (
            "swin_tiny_patch4_window7_224",
            224,
            "trunk.layers.1.blocks.0.attn.relative_position_bias_table",
        ),
    ],
)
def test_decay_spares_what_timm_spares(arch, size, spared):
    with torch.device("meta"):
        trunk = timm.create_model(arch, img_size=size, num_classes=0)
    groups = settings_of(torch.nn.ModuleDict({"trunk": trunk}), OptimiserConfig())
    assert groups[spared]["weight_decay"] == 0
    assert groups[spared.split(".")[0] + ".patch_embed.proj.weight"]["weight_decay"] == 0.02


def test_the_longest_prefix_sets_the_rate(model):
    scale = {"image": 2, "image.trunk.blocks.1": 3, "image.trunk": 5, "text_projection": 0}
    rates = {
        n: g["lr"] for n, g in settings_of(model, OptimiserConfig(lr=1e-3, lr_scale=scale)).items()
    }
    assert rates["image.trunk.blocks.1.mlp.fc1.weight"] == pytest.approx(3e-3)
    assert rates["image.trunk.blocks.0.mlp.fc1.weight"] == pytest.approx(5e-3)
    assert rates["image_projection.weight"] == pytest.approx(2e-3)
    assert rates["text_projection.weight"] == 0
    assert rates["text.trunk.embeddings.word_embeddings.weight"] == pytest.approx(1e-3)


def test_what_has_the_rate_0_gets_no_gradient(model):
    config = OptimiserConfig(lr_scale={"image.trunk.blocks.0.": 0, "image.trunk.patch_embed": 0})
    freeze_unmoved(model, config)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("image.trunk.blocks.0.", "image.trunk.patch_embed"))
    }
    assert settings_of(model, config).keys() == dict(model.named_parameters()).keys() - frozen
    freeze_unmoved(model, everything := OptimiserConfig(lr_scale={"": 0}))
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        make_optimiser(model, everything)


def test_unused_prefixes_are_refused(model):
    config = OptimiserConfig(lr_scale={"image": 2, "image.trunc": 3, "imag.": 1})
    with pytest.raises(ConfigError, match=r"starts with \['imag\.', 'image\.trunc'\]"):
        make_optimiser(model, config)


def test_frozen_parameters_are_left_out(model):
    model.image.requires_grad_(False)
    names = settings_of(model, OptimiserConfig()).keys()
    assert names
    assert not [name for name in names if name.startswith("image.")]
    with pytest.raises(ConfigError, match="no trainable parameter"):
        make_optimiser(model, OptimiserConfig(lr_scale={"image.": 2}))


def test_lr_warms_up_stays_and_falls_linearly_to_nothing():
    config = OptimiserConfig(warmup_steps=4, constant_epochs=2)
    factors = [lr_factor(step, 5, 6, config) for step in range(30)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:11] == [1.0] * 7
    falls = [before - after for before, after in itertools.pairwise(factors[10:])]
    assert falls == pytest.approx([1 / 20] * 19)
    assert factors[-1] == pytest.approx(1 / 20)
    assert lr_factor(30, 5, 6, config) == 0.0


def test_lr_is_constant_if_no_epoch_is_left_to_fall():
    config = OptimiserConfig(constant_epochs=5)
    assert [lr_factor(step, 3, 2, config) for step in range(6)] == [1.0] * 6


def test_set_lr_keeps_the_proportions(model):
    optimiser = make_optimiser(model, OptimiserConfig(lr=1e-3, lr_scale={"text": 4}))
    for factor in (0.5, 0.25, 1.0):
        set_lr(optimiser, factor)
        rates = sorted({group["lr"] for group in optimiser.param_groups})
        assert rates == pytest.approx([1e-3 * factor, 4e-3 * factor])


def test_optimiser_is_adamw_with_adams_own_values_unless_told_otherwise(model):
    optimiser = make_optimiser(model, OptimiserConfig())
    assert isinstance(optimiser, torch.optim.AdamW)
    assert {group["betas"] for group in optimiser.param_groups} == {(0.9, 0.999)}
    assert {group["eps"] for group in optimiser.param_groups} == {1e-8}


def test_betas_and_eps_are_as_configured(model):
    optimiser = make_optimiser(model, OptimiserConfig(betas=[0.8, 0.98], eps=1e-6))
    assert len(optimiser.param_groups) > 1
    for group in optimiser.param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.98), 1e-6)


def test_a_step_is_the_formula_of_adamw():
    """Two steps of one weight, written out: betas, eps and decay enter as they should."""
    layer = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    config = OptimiserConfig(lr=0.1, weight_decay=0.02, betas=(0.8, 0.98), eps=1e-3)
    optimiser = make_optimiser(layer, config)
    expected, first, second = layer.weight.detach().clone(), 0.0, 0.0
    for step, gradient in enumerate((torch.tensor([[0.5, -2.0]]), torch.tensor([[1.0, 3.0]])), 1):
        gradient = gradient.double()
        layer.weight.grad = gradient.clone()
        optimiser.step()
        first = 0.8 * first + 0.2 * gradient
        second = 0.98 * second + 0.02 * gradient**2
        root = (second / (1 - 0.98**step)).sqrt()
        expected = expected * (1 - 0.1 * 0.02)
        expected = expected - 0.1 * first / (1 - 0.8**step) / (root + 1e-3)
        torch.testing.assert_close(layer.weight.detach(), expected)


@pytest.mark.parametrize("change", [{"betas": (0.9, 1.0)}, {"betas": (0.9,)}, {"eps": 0}])
def test_values_that_adamw_cannot_use_are_refused(change):
    with pytest.raises(ValueError, match=r"betas|eps"):
        OptimiserConfig(**change)
