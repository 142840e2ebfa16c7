"""Lower precision finds the same pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.encoder import Encoder
from cots_model.errors import InputError
from cots_model.model import CotsModel
from cots_model.precision import Int8Linear, use_int8
from cots_model.testing import tiny_model_config

TEXTS = ["a dog runs through the snow", "a red car", "two people on a beach", "a cat"]


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(5)]
    return [Image.fromarray(pixels).resize((320, 240)) for pixels in coarse]


@pytest.fixture(scope="module")
def exact():
    return Encoder.load("cots-mini", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "cosine"), [("bfloat16", 0.999), ("int8", 0.995)])
def test_the_bundled_checkpoint_gives_nearly_the_same_vectors(exact, pictures, precision, cosine):
    other = Encoder.load("cots-mini", device="cpu", precision=precision)
    for ours, theirs in (
        (other.encode_texts(TEXTS), exact.encode_texts(TEXTS)),
        (other.encode_images(pictures), exact.encode_images(pictures)),
    ):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
        agreement = (ours * theirs).sum(axis=1)
        assert agreement.min() >= cosine
        assert agreement.max() < 1 - 1e-7  # or it was not computed in another way


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 7)])
def test_a_layer_of_integers_is_what_its_rounded_numbers_say(bias, shape):
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 5, bias=bias)
    with torch.no_grad():
        layer.weight[2] = 0  # nothing to scale
    x = torch.randn(shape)
    weight_scale = layer.weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    x_scale = x.abs().amax(-1, keepdim=True) / 127
    expected = torch.nn.functional.linear(
        (x / x_scale).round() * x_scale, (layer.weight / weight_scale).round() * weight_scale
    )
    if bias:
        expected = expected + layer.bias
    with torch.inference_mode():
        torch.testing.assert_close(Int8Linear(layer)(x), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(
            Int8Linear(layer)(torch.zeros(shape))[..., 2],
            expected[..., 2] * 0 + (layer.bias[2] if bias else 0),
        )


def test_the_towers_are_rounded_but_for_the_attention_of_texts():
    model = CotsModel(tiny_model_config(50))
    use_int8(model)
    assert type(model.image_projection) is type(model.text_projection) is torch.nn.Linear
    for tower, spared in ((model.image, set()), (model.text, {True})):
        layers = [(n, m) for n, m in tower.named_modules() if isinstance(m, torch.nn.Linear)]
        assert {"attention" in name.split(".") for name, _ in layers} == spared
        assert any(isinstance(module, Int8Linear) for module in tower.modules())


def test_integers_are_for_cpus():
    with torch.device("meta"):
        model = CotsModel(tiny_model_config(50))
    with pytest.raises(InputError, match="int8 runs on a CPU, not on meta; take bfloat16"):
        use_int8(model)
