"""A checkpoint that is asked why: words, their maps, and an encoder that goes on meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.encoder import Encoder
from cots_model.ensemble import EnsembleEncoder
from cots_model.errors import InputError
from cots_model.explainer import Explainer, heated, levels
from cots_model.testing import make_tiny_checkpoint

TEXT = "Two dogs, in snow!"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    return Encoder.load(make_tiny_checkpoint(tmp_path_factory.mktemp("c") / "tiny"), device="cpu")


@pytest.fixture
def img() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_words_are_found_where_they_stand(encoder, img) -> None:
    found = Explainer.of(encoder).words(img, TEXT)
    assert [word.word for word in found.words] == ["Two", "dogs", "in", "snow"]
    assert [TEXT[word.start : word.end] for word in found.words] == [w.word for w in found.words]
    for word in found.words:
        assert word.level_hw.shape == (4, 4)
        assert (float(word.level_hw.min()), float(word.level_hw.max())) == (0, 1)
    expected = encoder.encode_texts([TEXT])[0] @ encoder.encode_images([img])[0]
    assert found.similarity == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a dog's ball", ["a", "dog's", "ball"]),
        ("the dogs\u2019 t-shirt", ["the", "dogs", "t-shirt"]),
        ("black-and-white rock'n'roll", ["black-and-white", "rock'n'roll"]),
        ("'dogs' - in,snow", ["dogs", "in", "snow"]),
        ("\u96ea\u4e2d\u7684\u72d7", ["\u96ea", "\u4e2d", "\u7684", "\u72d7"]),
    ],
)
def test_words_are_those_of_a_reader(encoder, img, text, words) -> None:
    found = Explainer.of(encoder).words(img, text)
    assert [word.word for word in found.words] == words
    shares = [word for word, _ in Explainer.of(encoder)(img, text).words]
    assert [word for word in shares if any(map(str.isalnum, word))] == words


def test_the_share_of_a_word_is_that_of_all_its_tokens(encoder, img) -> None:
    parts = dict(Explainer.of(encoder)(img, "a t - shirt").words)
    whole = dict(Explainer.of(encoder)(img, "a t-shirt").words)  # the same tokens
    assert whole["a"] == pytest.approx(parts["a"], abs=1e-6)
    assert whole["t-shirt"] == pytest.approx(1 - parts["a"], abs=1e-6)
    assert sum(whole.values()) == pytest.approx(1)


def test_the_encoder_is_not_touched(encoder, img) -> None:
    before = encoder.encode_images([img]), encoder.encode_texts([TEXT])
    explainer = Explainer.of(encoder)
    seen = []
    own = {id(module) for module in encoder.model.modules()}

    def look() -> None:
        attention = encoder.model.text.trunk.config._attn_implementation
        hooks = any(len(module._forward_hooks) for module in encoder.model.modules())
        seen.append((attention, hooks))
        assert np.array_equal(encoder.encode_images([img]), before[0])
        assert np.array_equal(encoder.encode_texts([TEXT]), before[1])

    look()
    explainer.words(img, TEXT, before_word=look)
    explainer(img, TEXT)
    assert len(seen) == 5
    assert len(set(seen)) == 1
    twin = explainer._model
    assert not own & {id(module) for module in twin.modules()}
    pairs = zip(twin.parameters(), encoder.model.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
    assert all(parameter.grad is None for parameter in twin.parameters())


def test_what_comes_between_words_can_end_it(encoder, img) -> None:
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        Explainer.of(encoder).words(img, TEXT, before_word=stop)
    assert len(calls) == 2


def test_a_text_without_words_has_no_maps(encoder, img) -> None:
    assert Explainer.of(encoder).words(img, "?!").words == ()


def test_models_without_gradients_are_refused(encoder, tmp_path) -> None:
    quantized = Encoder.load(make_tiny_checkpoint(tmp_path / "q"), device="cpu", precision="int8")
    with pytest.raises(InputError, match="int8"):
        Explainer.of(quantized)
    other = Encoder.load(make_tiny_checkpoint(tmp_path / "o", seed=1), device="cpu")
    with pytest.raises(InputError, match="is an ensemble"):
        Explainer.of(EnsembleEncoder([encoder, other]))


def test_a_map_lights_its_part_of_the_picture() -> None:
    patch_hw = torch.zeros(2, 2)
    patch_hw[0, 1] = 3
    assert levels(patch_hw).tolist() == [[0, 1], [0, 0]]
    assert levels(torch.ones(2, 2)).tolist() == [[0, 0], [0, 0]]
    drawn = np.asarray(heated(Image.new("RGB", (40, 40), "grey"), patch_hw)).sum(axis=2)
    assert drawn[:15, 25:].min() > drawn[25:, :15].max()
