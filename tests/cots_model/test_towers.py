"""Both towers: which networks are taken, and what their feature is."""

import pytest
import torch

from cots_model.config import ImageTowerConfig, ModelConfig, NetworkConfig, TextTowerConfig
from cots_model.errors import ConfigError
from cots_model.image_tower import ImageTower
from cots_model.model import CotsModel
from cots_model.text_tower import TextTower, masked_mean

TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2}


@pytest.fixture
def convolutional() -> ImageTower:
    torch.manual_seed(0)
    config = ImageTowerConfig(arch="efficientnet_lite0", image_size=64)
    return ImageTower(config)


@pytest.fixture
def img_B3HW() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_image_feature_is_cls_after_the_final_norm(model, img_BCHW):
    final = {}
    handle = model.image.trunk.norm.register_forward_hook(
        lambda _module, _args, output: final.update(tokens=output)
    )
    feature_BD = model.image.feature(img_BCHW)
    handle.remove()
    assert final["tokens"].shape == (3, 17, 32)
    assert torch.equal(feature_BD, final["tokens"][:, 0])
    assert torch.equal(model.image(img_BCHW), final["tokens"])


def test_convolutional_feature_is_the_mean_of_the_map(convolutional, img_B3HW):
    convolutional.eval()
    map_BDHW = convolutional(img_B3HW)
    assert map_BDHW.shape == (2, 1280, 2, 2)
    feature_BD = convolutional.feature(img_B3HW)
    assert feature_BD.shape == (2, convolutional.width)
    assert feature_BD.std() > 0.01
    torch.testing.assert_close(feature_BD, map_BDHW.mean(dim=(2, 3)), rtol=0, atol=1e-6)


def test_batch_norms_keep_their_statistics_while_training(convolutional, img_B3HW):
    norms = [m for m in convolutional.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) > 40
    assert not any(norm.training for norm in norms)
    convolutional.train()
    assert convolutional.trunk.training
    assert not any(norm.training for norm in norms)
    before = {name: value.clone() for name, value in convolutional.named_buffers()}
    convolutional(img_B3HW * 5 + 3)
    for name, value in convolutional.named_buffers():
        assert torch.equal(value, before[name]), name


def test_feature_is_dropped_only_while_training(img_B3HW):
    image = ImageTowerConfig(
        arch="vit_tiny_patch16_224", image_size=64, options=TINY, feature_drop_rate=0.5
    )
    bert = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    model = CotsModel(
        ModelConfig(name="m", image=image, text=TextTowerConfig(options=bert), embed_dim=8)
    )
    model.eval()
    assert torch.equal(model.encode_image(img_B3HW), model.encode_image(img_B3HW))
    seen = []
    model.image_projection.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model.train()
    model.encode_image(img_B3HW)
    share = (seen[0] == 0).float().mean()
    assert 0.2 < share < 0.8


def test_text_feature_is_dropped_only_while_training():
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = quiet | {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2}
    image = ImageTowerConfig(arch="vit_tiny_patch16_224", image_size=64, options=TINY)
    text = TextTowerConfig(options=bert, feature_drop_rate=0.3)
    model = CotsModel(ModelConfig(name="m", image=image, text=text, embed_dim=8))
    seen = []
    model.text_projection.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    tok_BL = torch.randint(5, 50, (20, 6))
    model.eval().encode_text(tok_BL, torch.ones_like(tok_BL, dtype=torch.bool))
    model.train().encode_text(tok_BL, torch.ones_like(tok_BL, dtype=torch.bool))
    whole, dropped = seen
    assert (whole == 0).float().mean() == 0
    assert 0.2 < (dropped == 0).float().mean() < 0.4


def test_timm_hybrid_is_taken_by_name(img_B3HW):
    config = ImageTowerConfig(arch="vit_tiny_r_s16_p8_224", image_size=64)
    tower = ImageTower(config).eval()
    assert tower.feature(img_B3HW).shape == (2, tower.width)


@pytest.mark.parametrize(
    ("arch", "options", "says"),
    [
        ("vit_nonsense", {}, "Unknown model"),
        ("vit_tiny_patch16_224", {"dept": 2}, "dept"),
        ("vit_tiny_patch16_224", {"embed_dim": 31}, "divisible"),
        ("resnet18", {"depth": 2}, "depth"),
        ("resnet18.nonsense", {}, "nonsense"),
        ("vit_tiny_patch16_224", {"num_heads": 0}, "zero"),
        ("vit_tiny_patch16_224", {"norm_layer": "nope"}, "nope"),
    ],
)
def test_image_tower_refuses_other_networks(arch, options, says):
    config = ImageTowerConfig(arch=arch, image_size=32, options=options)
    with torch.device("meta"), pytest.raises(ConfigError, match=says) as caught:
        ImageTower(config)
    assert arch in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "options", "width"),
    [
        ("resnet18", {}, 512),
        ("vit_tiny_patch16_224", TINY | {"class_token": False, "global_pool": "avg"}, 32),
        ("swin_tiny_patch4_window7_224", {"window_size": 2}, 768),
    ],
)
def test_networks_without_a_class_token_give_what_they_pool(arch, options, width, img_B3HW):
    tower = ImageTower(ImageTowerConfig(arch=arch, image_size=64, options=options)).eval()
    assert tower.width == width
    assert tower.feature(img_B3HW).shape == (2, width)


def test_cls_mean_appends_the_mean_of_the_patch_tokens(img_B3HW):
    arch = "vit_small_patch14_reg4_dinov2"  # registers are no patches
    options = TINY | {"patch_size": 16}
    config = ImageTowerConfig(arch=arch, image_size=64, options=options, pool="cls_mean")
    tower = ImageTower(config).eval()
    tokens_BPD = tower(img_B3HW)
    assert tokens_BPD.shape == (2, 1 + 4 + 16, 32)
    expected_BD = torch.cat([tokens_BPD[:, 0], tokens_BPD[:, 5:].mean(dim=1)], dim=1)
    assert tower.width == 64
    assert torch.equal(tower.feature(img_B3HW), expected_BD)


def test_cls_mean_needs_a_class_token():
    config = ImageTowerConfig(arch="resnet18", image_size=64, pool="cls_mean")
    with torch.device("meta"), pytest.raises(ConfigError, match="'resnet18' has no class token"):
        ImageTower(config)


def test_networks_side_by_side_see_the_same_pixels(img_B3HW):
    torch.manual_seed(0)
    beside = NetworkConfig(arch="efficientnet_lite0")
    config = ImageTowerConfig(
        arch="vit_tiny_patch16_224", image_size=64, options=TINY, beside=(beside,)
    )
    tower = ImageTower(config).eval()
    feature_BD = tower.feature(img_B3HW)
    assert feature_BD.shape == (2, tower.width) == (2, 32 + 1280)
    assert torch.equal(feature_BD[:, :32], tower(img_B3HW)[:, 0])
    map_BDHW = tower.beside[0].forward_features(img_B3HW)
    torch.testing.assert_close(feature_BD[:, 32:], map_BDHW.mean(dim=(2, 3)), rtol=0, atol=1e-6)


def test_a_network_sees_the_pixels_at_its_own_side(img_B3HW):
    torch.manual_seed(0)
    beside = NetworkConfig(arch="vit_tiny_patch16_224", options=TINY, side=32)
    tower = ImageTower(ImageTowerConfig(arch="resnet18", image_size=64, beside=(beside,))).eval()
    small_B3HW = torch.nn.functional.interpolate(
        img_B3HW, (32, 32), mode="bilinear", antialias=True
    )
    expected_BD = tower.beside[0].forward_features(small_B3HW)[:, 0]
    torch.testing.assert_close(tower.feature(img_B3HW)[:, 512:], expected_BD, rtol=0, atol=1e-6)
    assert tower.beside[0].patch_embed.grid_size == (2, 2)
    assert tower(img_B3HW).shape == (2, 512, 2, 2)  # the first network's: not scaled


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("hf-hub:someone/model", {}),
        ("local-dir:/somewhere", {}),
        ("vit_tiny_patch16_224", {"checkpoint_path": "evil.pth"}),
        ("vit_tiny_patch16_224", {"pretrained": True}),
        ("vit_tiny_patch16_224", {"pretrained_cfg": {"file": "evil.pth"}}),
    ],
)
def test_configurations_cannot_make_timm_load_anything(arch, options):
    with pytest.raises(ConfigError, match="does not load one"):
        ImageTower(ImageTowerConfig(arch=arch, image_size=32, options=options))
    beside = NetworkConfig(arch=arch, options=options)
    with torch.device("meta"), pytest.raises(ConfigError, match="does not load one"):
        ImageTower(ImageTowerConfig(arch="resnet18", image_size=32, beside=(beside,)))


def test_masked_mean_matches_a_naive_loop():
    rng = torch.Generator().manual_seed(0)
    h_BLD = torch.randn(5, 7, 3, dtype=torch.float64, generator=rng)
    mask_BL = torch.rand(5, 7, generator=rng) < 0.6
    mask_BL[:, 0] = True
    for row, mean_D in enumerate(masked_mean(h_BLD, mask_BL)):
        tokens = [h_BLD[row, i] for i in range(7) if mask_BL[row, i]]
        torch.testing.assert_close(mean_D, sum(tokens) / len(tokens), rtol=0, atol=1e-12)


def test_masked_mean_ignores_nan_in_padding():
    h_BLD = torch.ones(1, 3, 2)
    h_BLD[0, 2] = torch.nan
    mean_BD = masked_mean(h_BLD, torch.tensor([[True, True, False]]))
    assert mean_BD.tolist() == [[1.0, 1.0]]


def test_text_feature_is_the_masked_mean_of_the_tokens(model, preprocess):
    tok_BL, mask_BL = preprocess.text(["a dog", "two red cats in the snow"])
    tok_BLD = model.text(tok_BL, mask_BL)
    feature_BD = model.text.feature(tok_BL, mask_BL)
    for row in range(2):
        mean_D = tok_BLD[row, mask_BL[row]].mean(dim=0)
        torch.testing.assert_close(feature_BD[row], mean_D, rtol=0, atol=1e-6)


@pytest.mark.parametrize("filler", [0, 7])
def test_text_feature_does_not_see_padding(model, preprocess, filler):
    tok_BL, mask_BL = preprocess.text(["a dog runs in the snow"])
    alone_BE = model.encode_text(tok_BL, mask_BL)
    for num_padding in (1, 5, 20):
        more_tok_BL = torch.nn.functional.pad(tok_BL, (0, num_padding), value=filler)
        more_mask_BL = torch.nn.functional.pad(mask_BL, (0, num_padding))
        padded_BE = model.encode_text(more_tok_BL, more_mask_BL)
        assert (padded_BE - alone_BE).abs().max() < 1e-6


def test_text_tower_has_no_pooler(model):
    assert not [name for name, _ in model.text.named_parameters() if "pooler" in name]


@pytest.mark.parametrize(
    ("arch", "options", "says"),
    [
        ("nonsense", {}, "Unrecognized"),
        ("gpt2", {}, "choose a BERT-style encoder"),
        ("bert", {"hidden_size": 30, "num_attention_heads": 4}, "not a multiple"),
        ("bert", {"hidden_size": "wide"}, "hidden_size"),
        ("bert", {"num_hiden_layers": 2}, r"unknown options \['num_hiden_layers'\]"),
        ("bert", {"_attn_implementation": "someone/kernel"}, "unknown options"),
    ],
)
def test_text_tower_refuses_other_networks(arch, options, says):
    with torch.device("meta"), pytest.raises(ConfigError, match=says) as caught:
        TextTower(TextTowerConfig(arch=arch, options=options))
    assert arch in str(caught.value)
