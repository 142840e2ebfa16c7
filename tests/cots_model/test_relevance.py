"""Where a similarity comes from: the rule of GAE, and its way through both towers."""

import pytest
import torch

from cots_model.config import ImageTowerConfig
from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from cots_model.relevance import explain, explain_words, propagate
from cots_model.testing import make_tokenizer, tiny_model_config


def layers(start: float, size: tuple[int, ...], of) -> list[torch.Tensor]:
    i = torch.arange(32, dtype=torch.float64).reshape(size)
    return [of(i, layer + start) for layer in range(3)]


def test_three_layers_give_the_numbers_of_the_rule():
    size = (2, 4, 4)
    attention = layers(0, size, lambda i, a: torch.softmax(torch.sin(0.7 * i + a), dim=-1))
    gradient = layers(0.5, size, lambda i, a: torch.sin(1.3 * i + a))
    expected = [1.4141097521, 0.2879182726, 0.1954446633, 0.3323214291]
    assert propagate(attention, gradient)[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_propagation_matches_a_naive_loop():
    rng = torch.Generator().manual_seed(0)
    attention, gradient = torch.randn(2, 3, 2, 4, 4, generator=rng, dtype=torch.float64)
    expected = [[float(i == j) for j in range(4)] for i in range(4)]
    for A_HTT, G_HTT in zip(attention[1:], gradient[1:], strict=True):
        mean = [
            [
                sum(max(0.0, float(A_HTT[h, i, j] * G_HTT[h, i, j])) for h in range(2)) / 2
                for j in range(4)
            ]
            for i in range(4)
        ]
        expected = [
            [expected[i][j] + sum(mean[i][k] * expected[k][j] for k in range(4)) for j in range(4)]
            for i in range(4)
        ]
    found = propagate(list(attention), list(gradient), start_layer=1)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("start", [-1, 3])
def test_no_layer_is_refused(start):
    ones = [torch.ones(2, 4, 4)] * 3
    with pytest.raises(ValueError, match="of 3 layers"):
        propagate(ones, ones, start_layer=start)


@pytest.fixture
def model() -> CotsModel:
    torch.manual_seed(0)
    return CotsModel(tiny_model_config(make_tokenizer().get_vocab_size())).eval()


@pytest.fixture
def pair(model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    side = model.config.image.image_size
    tok_1L = torch.tensor([[1, 5, 6, 2, 0]])
    return torch.randn(1, 3, side, side), tok_1L, torch.tensor([[True] * 4 + [False]])


def test_a_map_over_patches_and_words_without_a_trace_in_the_model(model, pair):
    before = model.encode_image(pair[0])
    implementation = model.text.trunk.config._attn_implementation
    found = explain(model, *pair)
    assert found.patch_hw.shape == model.image.patch_grid
    assert (found.patch_hw >= 0).all()
    assert found.patch_hw.sum() > 0
    assert (found.token_L[:4] >= 0.25).all()
    assert found.token_L[:4].std() > 0
    assert found.token_L[4] == 0
    expected = (before * model.encode_text(*pair[1:])).sum().item()
    assert found.similarity == pytest.approx(expected, abs=1e-5)
    assert torch.equal(model.encode_image(pair[0]), before)
    assert model.text.trunk.config._attn_implementation == implementation
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(block.attn.fused_attn for block in model.image.trunk.blocks)
    assert not any(block.attn.attn_drop._forward_hooks for block in model.image.trunk.blocks)


def test_the_gradients_are_those_of_the_similarity(model, pair):
    """By differences: a little more of one attention weight of the last layer."""
    found = explain(model, *pair, start_layer=1)
    attention: list[torch.Tensor] = []
    last = model.image.trunk.blocks[-1].attn
    last.fused_attn = False
    change = torch.zeros(())

    def add(_module, _args, A_BHTT):
        attention.append(A_BHTT.detach())
        return A_BHTT + change

    last.attn_drop.register_forward_hook(add)

    def similarity() -> float:
        with torch.no_grad():
            return (model.encode_image(pair[0]) * model.encode_text(*pair[1:])).sum().item()

    plain = similarity()
    A_HTT = attention[0][0]
    gradient_HT = torch.zeros(A_HTT.shape[0], A_HTT.shape[2])
    for head in range(A_HTT.shape[0]):
        for token in range(A_HTT.shape[2]):
            change = torch.zeros_like(attention[0])
            change[0, head, 0, token] = 0.05
            gradient_HT[head, token] = (similarity() - plain) / 0.05
    cls_T = (gradient_HT * A_HTT[:, 0]).clamp(min=0).mean(dim=0)
    prefix = model.image.trunk.num_prefix_tokens
    torch.testing.assert_close(found.patch_hw.flatten(), cls_T[prefix:], rtol=0.1, atol=2e-4)


def test_the_words_gradients_are_those_of_the_similarity(model, pair):
    """By differences, in the last layer of the text tower."""
    found = explain(model, *pair, text_start_layer=1)
    image_1E = model.encode_image(pair[0]).detach()
    attention: list[torch.Tensor] = []
    model.text.trunk.set_attn_implementation("eager")
    change = torch.zeros(())

    def add(_module, args):
        attention.append(args[0].detach())
        return (args[0] + change,)

    last = model.text.trunk.encoder.layer[-1].attention.self
    weighed = torch.matmul

    def matmul(A, B):
        is_last = A.shape[-1] == A.shape[-2] and A.shape[-1] == pair[1].shape[1]
        return weighed(add(None, (A,))[0] if is_last and watching else A, B)

    watching = False
    last.register_forward_pre_hook(lambda *_: watch(True))
    last.register_forward_hook(lambda *_: watch(False))

    def watch(on):
        nonlocal watching
        watching = on

    def similarity() -> float:
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "matmul", matmul)
            return (image_1E * model.encode_text(*pair[1:])).sum().item()

    plain = similarity()
    A_HLL = attention[0][0]
    gradient_HLL = torch.zeros_like(A_HLL)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in A_HLL.shape)).tolist():
        change = torch.zeros_like(attention[0])
        change[(0, *place)] = 0.05
        gradient_HLL[tuple(place)] = (similarity() - plain) / 0.05
    expected_LL = (gradient_HLL * A_HLL).clamp(min=0).mean(dim=0) + torch.eye(5)
    expected_L = expected_LL[:4].mean(dim=0) * pair[2][0]
    torch.testing.assert_close(found.token_L, expected_L, rtol=1e-3, atol=2e-4)


def test_frozen_weights_are_no_hindrance(model, pair):
    expected = explain(model, *pair)
    model.requires_grad_(False)
    found = explain(model, *pair)
    assert torch.equal(found.patch_hw, expected.patch_hw)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_batches_other_networks_and_missing_layers_are_refused(model, pair):
    with pytest.raises(ValueError, match="2 pictures and 1 texts"):
        explain(model, pair[0].repeat(2, 1, 1, 1), *pair[1:])
    with pytest.raises(ConfigError, match="image tower has 2 layers, and none is left"):
        explain(model, *pair, start_layer=2)
    with pytest.raises(ConfigError, match="text tower has 2 layers, and none is left"):
        explain(model, *pair, text_start_layer=2)
    config = tiny_model_config(make_tokenizer().get_vocab_size())
    image = ImageTowerConfig(arch="efficientnet_lite0", image_size=64)
    other = CotsModel(config.model_copy(update={"image": image})).eval()
    with pytest.raises(ConfigError, match="no attention from a class token"):
        explain(other, torch.randn(1, 3, 64, 64), *pair[1:])


def test_a_word_that_is_the_whole_text_has_the_texts_map(model, pair):
    img_1CHW, tok_1L, mask_1L = pair
    whole = explain(model, *pair)
    found = explain_words(model, *pair, torch.cat([mask_1L, mask_1L]))
    assert found.similarity == pytest.approx(whole.similarity, abs=1e-6)
    assert found.similarity_W.tolist() == pytest.approx([whole.similarity] * 2, abs=1e-6)
    for patch_hw in found.patch_Whw:
        torch.testing.assert_close(patch_hw, whole.patch_hw)
    single = torch.zeros_like(mask_1L)
    single[0, 1] = True
    other = explain_words(model, *pair, single)
    assert not torch.allclose(other.patch_Whw[0], whole.patch_hw)
    assert explain_words(model, *pair, mask_1L[:0]).patch_Whw.shape == (0, 4, 4)
    with pytest.raises(ConfigError, match="image tower has 2 layers"):
        explain_words(model, *pair, mask_1L, start_layer=2)
    with pytest.raises(ValueError, match="1 pictures and 2 texts"):
        explain_words(model, img_1CHW, tok_1L.repeat(2, 1), mask_1L.repeat(2, 1), mask_1L)
