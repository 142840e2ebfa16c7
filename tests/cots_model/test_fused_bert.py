"""A BERT whose layers are one call each gives what it gave before."""

import copy

import pytest
import torch

from cots_model.config import TextTowerConfig
from cots_model.encoder import Encoder
from cots_model.fused_bert import FusedBert, can_fuse
from cots_model.text_tower import TextTower

OPTIONS = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}


def tower_of(arch="bert", **options) -> TextTower:
    torch.manual_seed(0)
    tower = TextTower(TextTowerConfig(arch=arch, options={**OPTIONS, **options}))
    with torch.no_grad():
        for weight in tower.parameters():  # biases and norms too: they begin as 0 and 1
            weight.add_(torch.randn_like(weight) * 0.2)
    return tower.eval()


def batch(lengths, width=12):
    torch.manual_seed(1)
    mask_BL = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return torch.randint(1, 50, mask_BL.shape).masked_fill(~mask_BL, 0), mask_BL


@pytest.mark.parametrize("options", [{}, {"layer_norm_eps": 0.5}, {"num_attention_heads": 2}])
@pytest.mark.parametrize("lengths", [[12], [1], [12, 3, 1, 7], [5, 5]])
def test_a_fused_tower_gives_the_same_features(lengths, options):
    tower = tower_of(**options)
    before = copy.deepcopy(tower)
    fused = FusedBert(tower)
    tok_BL, mask_BL = batch(lengths)
    with torch.inference_mode():
        expected_BD = before.feature(tok_BL, mask_BL)
        torch.testing.assert_close(fused.feature(tok_BL, mask_BL), expected_BD, atol=2e-6, rtol=0)
        torch.testing.assert_close(tower.feature(tok_BL, mask_BL), expected_BD, atol=2e-6, rtol=0)
    assert expected_BD.std() > 0.1


def test_padding_has_no_influence_on_a_fused_tower():
    fused = FusedBert(tower_of())
    tok_BL, mask_BL = batch([12, 3])
    with torch.inference_mode():
        alone_BD = fused.feature(tok_BL[1:, :3], mask_BL[1:, :3])
        other_BL = tok_BL.masked_fill(~mask_BL, 9)
        torch.testing.assert_close(fused.feature(other_BL, mask_BL)[1:], alone_BD)


def test_weights_are_shared_so_that_what_changes_one_changes_both():
    tower = tower_of()
    fused = FusedBert(tower)
    tok_BL, mask_BL = batch([4])
    with torch.inference_mode():
        before_BD = fused.feature(tok_BL, mask_BL)
    with torch.no_grad():
        for weight in tower.parameters():
            weight.mul_(1.5)
    with torch.inference_mode():
        after_BD = fused.feature(tok_BL, mask_BL)
        torch.testing.assert_close(after_BD, tower.feature(tok_BL, mask_BL), atol=2e-6, rtol=0)
    assert (after_BD - before_BD).abs().max() > 0.01


def test_a_layer_is_one_call():
    fused = FusedBert(tower_of())
    tok_BL, mask_BL = batch([4, 9])
    with torch.inference_mode(), torch.profiler.profile() as profile:
        fused.feature(tok_BL, mask_BL)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::_transformer_encoder_layer_fwd"] == OPTIONS["num_hidden_layers"]
    assert "aten::scaled_dot_product_attention" not in calls


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"num_attention_heads": 1}),
        ("roberta", {"max_position_embeddings": 20}),
    ],
)
def test_other_networks_are_left_as_they_are(arch, options):
    assert not can_fuse(tower_of(arch, **options))


def test_plain_bert_can_be_fused_unless_it_is_in_another_precision():
    assert can_fuse(tower_of())
    assert not can_fuse(tower_of().bfloat16())


@pytest.fixture
def one_thread():
    """The profiler sees the thread that started it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_encoder_fuses_in_float32_alone(tiny_checkpoint, precision):
    encoder = Encoder.load(tiny_checkpoint, device="cpu", precision=precision)
    with torch.profiler.profile() as profile:
        encoder.encode_texts(["a dog in the snow"])
    fused = "aten::_transformer_encoder_layer_fwd" in {e.key for e in profile.key_averages()}
    assert fused == (precision == "float32")
