"""Hidden patches: what stands in for them, where, and for which networks."""

import pytest
import torch

from cots_model.config import ImageTowerConfig, NetworkConfig
from cots_model.errors import ConfigError
from cots_model.image_tower import ImageTower

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2}
NETWORKS = {
    "class token": ("vit_tiny_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"patch_size": 16}),
    "class position apart": ("vit_tiny_patch16_224", {"no_embed_class": True}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "norm before": ("vit_tiny_patch16_224", {"pre_norm": True}),
    "dynamic size": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
}


def build(arch: str, options: dict, **more) -> ImageTower:
    torch.manual_seed(0)
    config = ImageTowerConfig(arch=arch, image_size=64, options=TINY | options, **more)
    tower = ImageTower(config).eval()
    for parameter in tower.parameters():  # position embeddings start near zero
        torch.nn.init.normal_(parameter, std=0.3)
    return tower


@pytest.fixture(params=NETWORKS)
def tower(request) -> ImageTower:
    return build(*NETWORKS[request.param])


@pytest.fixture
def vit() -> ImageTower:
    return build(*NETWORKS["class token"])


@pytest.fixture
def img_B3HW() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def token_D() -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hidden_BP() -> torch.Tensor:
    """Different patches of both pictures."""
    hidden_BP = torch.zeros(2, 16, dtype=torch.bool)
    hidden_BP[0, [0, 5, 6, 15]] = True
    hidden_BP[1, [2, 3, 9]] = True
    return hidden_BP


def with_pixels_changed(img_B3HW: torch.Tensor, patch_BP: torch.Tensor) -> torch.Tensor:
    """Other pixels in the given patches of 16 x 16."""
    where_BHW = patch_BP.view(2, 4, 4).repeat_interleave(16, 1).repeat_interleave(16, 2)
    return torch.where(where_BHW[:, None], img_B3HW * 3 + 2, img_B3HW)


def test_nothing_hidden_gives_the_plain_patch_tokens(tower, img_B3HW, token_D):
    none_BP = torch.zeros(2, 16, dtype=torch.bool)
    patches_BPD = tower.masked_patches(img_B3HW, none_BP, token_D)
    assert patches_BPD.shape == (2, 16, 32)
    assert torch.equal(patches_BPD, tower(img_B3HW)[:, tower.trunk.num_prefix_tokens :])


def test_pixels_of_hidden_patches_have_no_influence(tower, img_B3HW, hidden_BP, token_D):
    before_BPD = tower.masked_patches(img_B3HW, hidden_BP, token_D)
    hidden_changed = with_pixels_changed(img_B3HW, hidden_BP)
    assert torch.equal(tower.masked_patches(hidden_changed, hidden_BP, token_D), before_BPD)
    visible_BP = torch.zeros_like(hidden_BP)
    visible_BP[:, 4] = True
    visible_changed = with_pixels_changed(img_B3HW, visible_BP)
    after_BPD = tower.masked_patches(visible_changed, hidden_BP, token_D)
    assert ((after_BPD - before_BPD).abs().amax(dim=2) > 1e-4).all()


def test_mask_token_stands_where_patches_are_hidden(tower, img_B3HW, hidden_BP, token_D):
    """What enters the first block: mask token + position there, the plain values elsewhere."""
    seen = []
    tower.trunk.norm_pre.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    tower(img_B3HW)
    tower.masked_patches(img_B3HW, hidden_BP, token_D)
    prefix = tower.trunk.num_prefix_tokens
    plain_BPD, masked_BPD = (tokens_BTD[:, prefix:] for tokens_BTD in seen)
    assert torch.equal(seen[0][:, :prefix], seen[1][:, :prefix])
    position_PD = tower.trunk.pos_embed[0, -16:]
    assert position_PD.std(dim=0).min() > 0.1
    expected_PD = token_D + position_PD
    for row in range(2):
        hidden_P = hidden_BP[row]
        torch.testing.assert_close(masked_BPD[row, hidden_P], expected_PD[hidden_P])
        assert torch.equal(masked_BPD[row, ~hidden_P], plain_BPD[row, ~hidden_P])


def test_hidden_patches_are_told_apart_by_their_position(vit, img_B3HW, token_D):
    all_BP = torch.ones(2, 16, dtype=torch.bool)
    patches_BPD = vit.masked_patches(img_B3HW, all_BP, token_D)
    # Nothing of the pictures is left; rows of a batch may be rounded differently.
    torch.testing.assert_close(patches_BPD[0], patches_BPD[1])
    distance_PP = torch.cdist(patches_BPD[0], patches_BPD[0]) + 9 * torch.eye(16)
    assert distance_PP.min() > 0.05


def test_hidden_patches_match_a_forward_written_out(vit, img_B3HW, hidden_BP, token_D):
    trunk = vit.trunk
    x_BPD = trunk.patch_embed.proj(img_B3HW).flatten(2).transpose(1, 2).clone()
    for row, patch in hidden_BP.nonzero().tolist():
        x_BPD[row, patch] = token_D
    x_BTD = torch.cat([trunk.cls_token.expand(2, -1, -1), x_BPD], dim=1) + trunk.pos_embed
    for block in trunk.blocks:
        x_BTD = block(x_BTD)
    expected_BPD = trunk.norm(x_BTD)[:, 1:]
    patches_BPD = vit.masked_patches(img_B3HW, hidden_BP, token_D)
    torch.testing.assert_close(patches_BPD, expected_BPD, rtol=1e-5, atol=1e-5)


def test_gradient_reaches_mask_token_and_visible_pixels(vit, img_B3HW, hidden_BP, token_D):
    token_D.requires_grad_()
    img_B3HW.requires_grad_()
    vit.masked_patches(img_B3HW, hidden_BP, token_D)[hidden_BP].sum().backward()
    assert (token_D.grad != 0).all()
    moved_Bhw = img_B3HW.grad.unflatten(2, (4, 16)).unflatten(4, (4, 16)).abs().sum(dim=(1, 3, 5))
    assert torch.equal(moved_Bhw.flatten(1) > 0, ~hidden_BP)
    assert vit.trunk.pos_embed.grad[0, 1:].abs().sum() > 0


def test_hiding_leaves_no_trace(vit, img_B3HW, hidden_BP, token_D):
    plain_BTD = vit(img_B3HW)
    hooks = dict(vit.trunk.patch_embed._forward_hooks)
    masked_BPD = vit.masked_patches(img_B3HW, hidden_BP, token_D)
    assert not torch.equal(masked_BPD, plain_BTD[:, 1:])
    with pytest.raises(ValueError, match=r"flags \[2, 15\] for patches \[2, 16\]"):
        vit.masked_patches(img_B3HW, hidden_BP[:, :15], token_D)
    with pytest.raises(ValueError, match="give one per picture and patch"):
        vit.masked_patches(img_B3HW, hidden_BP[:1], token_D)
    assert vit.trunk.patch_embed._forward_hooks == hooks
    assert torch.equal(vit(img_B3HW), plain_BTD)


def test_hooks_of_others_see_both_kinds_of_pass(vit, img_B3HW, hidden_BP, token_D):
    final, whole = [], []
    vit.trunk.norm.register_forward_hook(lambda _module, _args, output: final.append(output))
    vit.register_forward_hook(lambda _module, _args, output: whole.append(output))
    patches_BPD = vit.masked_patches(img_B3HW, hidden_BP, token_D)
    assert torch.equal(final[0][:, 1:], patches_BPD)
    assert torch.equal(whole[0], final[0])


def test_hiding_works_with_activation_checkpointing(vit, img_B3HW, hidden_BP, token_D):
    token_D.requires_grad_()
    gradients = []
    for enable in (False, True):
        vit.trunk.set_grad_checkpointing(enable)
        loss = vit.masked_patches(img_B3HW, hidden_BP, token_D)[hidden_BP].sum()
        gradients.append(torch.autograd.grad(loss, token_D)[0])
    torch.testing.assert_close(*gradients)


def test_hiding_works_in_bf16_autocast(vit, img_B3HW, hidden_BP, token_D):
    with torch.autocast("cpu", torch.bfloat16):
        patches_BPD = vit.masked_patches(img_B3HW, hidden_BP, token_D)
        none_BPD = vit.masked_patches(img_B3HW, torch.zeros_like(hidden_BP), token_D)
        assert torch.equal(none_BPD, vit(img_B3HW)[:, 1:])
    exact_BPD = vit.masked_patches(img_B3HW, hidden_BP, token_D)
    torch.testing.assert_close(patches_BPD.float(), exact_BPD, rtol=0.1, atol=0.1)


def test_only_the_first_network_gives_tokens(img_B3HW, hidden_BP, token_D):
    beside = NetworkConfig(arch="efficientnet_lite0")
    tower = build(*NETWORKS["class token"], beside=(beside,), pool="cls_mean")
    calls = []
    tower.beside[0].register_forward_hook(lambda *_: calls.append(1))
    tower.beside[0].forward_features = lambda *_: calls.append(1)
    assert tower.masked_patches(img_B3HW, hidden_BP, token_D).shape == (2, 16, 32)
    assert not calls
    assert tower.token_width == 32
    assert tower.width == 64 + 1280


def test_patch_grid_and_width_are_those_of_the_tokens(tower):
    assert tower.patch_grid == (4, 4)
    assert tower.token_width == 32


def test_a_hybrid_hides_its_patches(img_B3HW):
    tower = ImageTower(ImageTowerConfig(arch="vit_tiny_r_s16_p8_224", image_size=64)).eval()
    height, width = tower.patch_grid
    none_BP = torch.zeros(2, height * width, dtype=torch.bool)
    token_D = torch.ones(tower.token_width)
    plain_BPD = tower(img_B3HW)[:, tower.trunk.num_prefix_tokens :]
    assert torch.equal(tower.masked_patches(img_B3HW, none_BP, token_D), plain_BPD)
    masked_BPD = tower.masked_patches(img_B3HW, ~none_BP, token_D)
    torch.testing.assert_close(masked_BPD[0], masked_BPD[1])


@pytest.mark.parametrize("arch", ["resnet18", "efficientnet_lite0", "swin_tiny_patch4_window7_224"])
def test_networks_without_patch_tokens_are_refused(arch, img_B3HW, token_D):
    with torch.device("meta"):
        tower = ImageTower(ImageTowerConfig(arch=arch, image_size=64))
    for ask in (
        lambda: tower.patch_grid,
        lambda: tower.token_width,
        lambda: tower.masked_patches(img_B3HW, torch.zeros(2, 16).bool(), token_D),
    ):
        with pytest.raises(ConfigError, match=f"'{arch}' has no patch tokens to hide"):
            ask()


def test_a_network_that_drops_patches_is_refused(img_B3HW, hidden_BP, token_D):
    tower = build("vit_tiny_patch16_224", {"patch_drop_rate": 0.5})
    with pytest.raises(ConfigError, match="take patch_drop_rate out of its options"):
        tower.masked_patches(img_B3HW, hidden_BP, token_D)
