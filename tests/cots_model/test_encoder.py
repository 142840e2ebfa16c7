"""A checkpoint ready to embed."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.config import PreprocessConfig
from cots_model.encoder import Encoder, resolve_device
from cots_model.errors import CheckpointError, InputError
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer

TEXTS = ["a dog", "two red cats in the snow", "", "woman on the beach with a man", "x" * 300]


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, (count, 2))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def test_encoder_loads_a_checkpoint(encoder):
    assert (encoder.name, encoder.dim) == ("tiny", 32)
    assert encoder.device == torch.device("cpu")
    assert not encoder.model.training


def test_encoder_gives_float32_unit_vectors(encoder):
    for z_BE in (encoder.encode_texts(TEXTS), encoder.encode_images(pictures(5))):
        assert z_BE.shape == (5, 32)
        assert z_BE.dtype == np.float32
        assert z_BE.std() > 0.01
        np.testing.assert_allclose(np.linalg.norm(z_BE, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_encoder_does_not_depend_on_the_batch(encoder, batch_size):
    imgs = pictures(5)
    whole_BE = encoder.encode_texts(TEXTS)
    parts_BE = encoder.encode_texts(TEXTS, batch_size=batch_size)
    np.testing.assert_allclose(parts_BE, whole_BE, atol=1e-6)
    np.testing.assert_allclose(
        encoder.encode_images(imgs, batch_size=batch_size), encoder.encode_images(imgs), atol=1e-6
    )


def test_encoder_keeps_the_order(encoder):
    z_BE = encoder.encode_texts(TEXTS)
    backwards_BE = encoder.encode_texts(TEXTS[::-1], batch_size=2)
    np.testing.assert_allclose(backwards_BE[::-1], z_BE, atol=1e-6)
    assert np.abs(z_BE[0] - z_BE[1]).max() > 1e-3


def test_encoder_takes_texts_of_like_length_together(encoder, monkeypatch):
    texts = ["dog " * (n * 11 % 21 + 1) for n in range(21)]
    each_BE = np.concatenate([encoder.encode_texts([text]) for text in texts])
    parts = []
    encode = encoder._read_text_batch
    monkeypatch.setattr(
        encoder, "_read_text_batch", lambda part: (parts.append(part), encode(part))[1]
    )
    z_BE = encoder.encode_texts(texts)
    np.testing.assert_allclose(z_BE, each_BE, atol=1e-6)
    lengths = sorted((sorted(map(len, part)) for part in parts), reverse=True)
    assert len(lengths) > 2
    assert all(longer[0] > shorter[-1] for longer, shorter in itertools.pairwise(lengths))


def test_it_is_told_of_each_text_where_it_is_cut(encoder):
    ends = {text: encoder.preprocess.tokens([text]).cut_at_B[0] for text in [*TEXTS, "dog " * 99]}
    texts = [*ends, *reversed(ends)] * 9
    assert encoder.read_texts(texts).cut_at_B == tuple(ends[text] for text in texts)
    assert {end is None for end in ends.values()} == {True, False}


def test_encoder_gives_no_rows_for_no_input(encoder):
    for z_BE in (encoder.encode_texts([]), encoder.encode_images([])):
        assert z_BE.shape == (0, 32)
        assert z_BE.dtype == np.float32


def test_encoder_embeds_pixels_as_pictures(encoder):
    imgs = pictures(3)
    pixels_BCHW = encoder.preprocess.images(imgs)
    np.testing.assert_allclose(
        encoder.encode_pixels(pixels_BCHW), encoder.encode_images(imgs), atol=1e-6
    )


def test_encoder_takes_pixels_a_few_at_a_time_on_a_cpu(encoder):
    sizes = []
    norm = encoder.model.image.trunk.norm
    hook = norm.register_forward_hook(lambda *call: sizes.append(len(call[2])))
    try:
        pixels_BCHW = encoder.preprocess.images(pictures(19))
        z_BE = encoder.encode_pixels(pixels_BCHW)
        assert sum(sizes) == 19
        assert max(sizes) <= 4
        assert max(sizes) - min(sizes) <= 1
        each_BE = [encoder.encode_pixels(pixels_BCHW[row : row + 1])[0] for row in range(19)]
    finally:
        hook.remove()
    np.testing.assert_allclose(z_BE, each_BE, atol=1e-6)
    assert encoder.encode_pixels(pixels_BCHW[:0]).shape == (0, 32)


def test_encoder_is_the_model(encoder, model, preprocess):
    imgs = pictures(2)
    with torch.inference_mode():
        image_BE = model.encode_image(preprocess.images(imgs))
        text_BE = model.encode_text(*preprocess.text(TEXTS))
    np.testing.assert_allclose(encoder.encode_images(imgs), image_BE, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), text_BE, atol=1e-6)


def test_resolve_device_auto_takes_the_gpu_if_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["", "gpu", "CPU", "cpu:", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "mps"]
)
def test_resolve_device_refuses_other_names(name):
    with pytest.raises(InputError, match="accepted: auto, cpu, cuda, cuda:N"):
        resolve_device(name)


def test_resolve_device_refuses_a_gpu_that_is_not_there():
    name = f"cuda:{torch.cuda.device_count() + 7}"
    with pytest.raises(InputError, match=f"device '{name}' is not here"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"image_size": 64}, None, "image_size 64, not 32"),
        ({"max_tokens": 65}, None, "max_tokens 65, over 64"),
        ({}, [f"word{n}" for n in range(200)], "a vocabulary of"),
    ],
)
def test_encoder_refuses_preprocessing_of_another_model(model, changes, words, message):
    config = PreprocessConfig(**({"image_size": 32, "max_tokens": 32} | changes))
    with pytest.raises(CheckpointError, match=message):
        Encoder(model, Preprocess(config, make_tokenizer(words)), "0" * 64)


def test_encoder_refuses_a_bad_device_and_a_bad_source(tiny_checkpoint):
    with pytest.raises(InputError, match="accepted: auto"):
        Encoder.load(tiny_checkpoint, device="tpu")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Encoder.load("nothing-of-this-name", device="cpu")
