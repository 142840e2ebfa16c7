"""A checkpoint that is asked why: words, their maps, and an encoder that goes on meanwhile."""

from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Metaspace

from cots_model.encoder import Encoder
from cots_model.ensemble import EnsembleEncoder
from cots_model.errors import InputError
from cots_model.explainer import Explainer, heated, levels, word_spans
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
        ("T-\u6064\u7684\u72d7", ["T", "\u6064", "\u7684", "\u72d7"]),  # no script with hyphens
        ("a cafe\u0301's t-re\u0301sume\u0301s", ["a", "cafe\u0301's", "t-re\u0301sume\u0301s"]),
        (
            "\u0927\u0940\u0930\u0947-\u0927\u0940\u0930\u0947",
            ["\u0927\u0940\u0930\u0947-\u0927\u0940\u0930\u0947"],
        ),
        ("x " * 24 + "black-and-white", ["x"] * 24 + ["black"]),  # the model reads 32 tokens
    ],
)
def test_words_are_those_of_a_reader(encoder, img, text, words) -> None:
    found = Explainer.of(encoder).words(img, text)
    assert [word.word for word in found.words] == words
    shares = [word for word, _ in Explainer.of(encoder)(img, text).words]
    assert [word for word in shares if any(map(str.isalnum, word))] == words


def byte_level(**options) -> Tokenizer:
    """A byte-level BPE, as GPT-2 and RoBERTa have it, of single bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["[CLS]", *alphabet])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, **options)
    return tokenizer


def metaspace() -> Tokenizer:
    """Words with the space before them, and all signs between two spaces."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Metaspace()
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "text", "words"),
    [
        (byte_level(), "a dog's t-shirt, red", ["a", "dog's", "t-shirt", "red"]),
        (byte_level(use_regex=False), "t-shirt, red", ["t-shirt, red"]),
        (metaspace(), "a t-shirt red", ["a", "t-shirt", "red"]),
        (metaspace(), "dog,cat-tree red", ["dog,cat-tree", "red"]),
    ],
)
def test_words_of_other_tokenizers_are_whole_and_apart(tokenizer, text, words) -> None:
    spans = word_spans(SimpleNamespace(tokenizer=tokenizer), text)
    assert [text[span.start : span.end] for span in spans] == words
    assert all(one.end <= other.start for one, other in pairwise(spans))
    tokens = [token for span in spans for token in span.tokens]
    assert tokens == sorted(set(tokens))


def test_a_long_text_takes_no_time(encoder) -> None:
    begun_s = time.perf_counter()
    for text in ("a" * 8192, "a-" * 4096, "\u2019" * 8192):
        word_spans(encoder.text_preprocess, text)
    assert time.perf_counter() - begun_s < 0.5


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


@pytest.mark.parametrize("text", ["?!", "\0", "\u200b" * 50, "", " ", "-", "\u0301"])
def test_a_text_without_words_has_no_maps(encoder, img, text) -> None:
    assert Explainer.of(encoder).words(img, text).words == ()
    assert not any(word.isalnum() for word, _ in Explainer.of(encoder)(img, text).words)


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
