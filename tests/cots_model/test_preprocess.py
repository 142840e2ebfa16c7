"""From picture and text to tensors."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.checkpoint import PREPROCESS_FILE, TOKENIZER_FILE
from cots_model.config import PreprocessConfig
from cots_model.errors import CheckpointError, ConfigError
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def make(**options: object) -> Preprocess:
    return Preprocess(PreprocessConfig(**{"image_size": 8, **options}), make_tokenizer())


def stripes(width: int, height: int) -> Image.Image:
    """Thirds along the longer side: red, green, blue."""
    img = Image.new("RGB", (width, height), (0, 255, 0))
    if width > height:
        img.paste((255, 0, 0), (0, 0, width // 3, height))
        img.paste((0, 0, 255), (2 * width // 3, 0, width, height))
    else:
        img.paste((255, 0, 0), (0, 0, width, height // 3))
        img.paste((0, 0, 255), (0, 2 * height // 3, width, height))
    return img


def test_preprocess_normalises_by_mean_and_std():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    pixels_CHW = make(mean=mean, std=std).image(Image.new("RGB", (5, 9), (255, 51, 0)))
    assert pixels_CHW.dtype == torch.float32
    assert pixels_CHW.shape == (3, 8, 8)
    for channel, value in enumerate([(1 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (0 - 0.3) / 0.2]):
        np.testing.assert_allclose(pixels_CHW[channel], value, atol=1e-6)


def test_preprocess_leaves_a_picture_of_its_own_size_unchanged():
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for resize in ("squash", "crop"):
        pixels_CHW = make(resize=resize, **PLAIN).image(Image.fromarray(pixels_HWC))
        np.testing.assert_allclose(pixels_CHW.permute(1, 2, 0), pixels_HWC / 255.0, atol=1e-6)


@pytest.mark.parametrize("size", [(48, 16), (16, 48)])
def test_preprocess_squash_keeps_the_whole_picture(size):
    pixels_CHW = make(image_size=24, resize="squash", **PLAIN).image(stripes(*size))
    along_CS = pixels_CHW.mean(dim=1 if size[0] > size[1] else 2)
    for channel, place in enumerate((4, 12, 20)):
        assert along_CS[:, place].argmax() == channel
        assert along_CS[channel, place] > 0.99


@pytest.mark.parametrize("size", [(48, 16), (16, 48)])
def test_preprocess_crop_keeps_the_centre_square(size):
    pixels_CHW = make(image_size=24, resize="crop", **PLAIN).image(stripes(*size))
    pixels_CHW = pixels_CHW[:, 2:-2, 2:-2]  # at the cut the filter sees its neighbours
    assert pixels_CHW[1].min() > 0.99
    assert pixels_CHW[[0, 2]].max() < 0.01


def test_preprocess_takes_one_pixel():
    assert make(resize="crop").image(Image.new("RGB", (1, 1))).shape == (3, 8, 8)


def test_preprocess_refuses_what_is_not_rgb():
    with pytest.raises(ValueError, match=r"not L; use decode_image"):
        make().image(Image.new("L", (8, 8)))


def test_preprocess_images_stacks(preprocess):
    imgs = [Image.new("RGB", (9, 5), colour) for colour in ("red", "blue")]
    batch_BCHW = preprocess.images(imgs)
    for img, pixels_CHW in zip(imgs, batch_BCHW, strict=True):
        torch.testing.assert_close(preprocess.image(img), pixels_CHW, rtol=0, atol=0)


def test_preprocess_pads_to_the_longest_and_masks_padding(preprocess):
    texts = ["a dog", "two red cats in the snow", ""]
    tok_BL, mask_BL = preprocess.text(texts)
    lone = [preprocess.text([text])[0][0].tolist() for text in texts]
    assert tok_BL.dtype == torch.int64
    assert mask_BL.dtype == torch.bool
    assert tok_BL.shape == (3, max(map(len, lone)))
    for row, expected in enumerate(lone):
        assert tok_BL[row, mask_BL[row]].tolist() == expected
        assert mask_BL[row].tolist() == [i < len(expected) for i in range(tok_BL.shape[1])]
    assert (tok_BL[~mask_BL] == preprocess.pad_id).all()
    assert mask_BL[2].sum() == 2  # [CLS] and [SEP] are there even without a word


def test_preprocess_cuts_long_texts_and_keeps_the_last_special_token():
    preprocess = make(max_tokens=6)
    tok_BL, mask_BL = preprocess.text(["dog cat " * 50, "dog"])
    ids = [preprocess.tokenizer.token_to_id(t) for t in ("[CLS]", "dog", "cat", "[SEP]")]
    cls, dog, cat, sep = ids
    assert tok_BL[0].tolist() == [cls, dog, cat, dog, cat, sep]
    assert mask_BL[1].tolist() == [True] * 3 + [False] * 3


def test_preprocess_takes_no_texts(preprocess):
    tok_BL, mask_BL = preprocess.text([])
    assert tok_BL.shape == mask_BL.shape == (0, 0)


@pytest.mark.parametrize("text", ["\ud800 dog", "a\x00b", "🐶 犬 ζώο", "x" * 10_000, "\n\t "])
def test_preprocess_takes_any_text(preprocess, text):
    tok_BL, mask_BL = preprocess.text([text])
    assert 2 <= mask_BL.sum() <= preprocess.config.max_tokens
    assert tok_BL.max() < preprocess.tokenizer.get_vocab_size()


def test_preprocess_refuses_a_tokenizer_without_its_padding():
    with pytest.raises(CheckpointError, match=r"no token '<pad>'; set pad_token"):
        make(pad_token="<pad>")


def test_preprocess_survives_pickle_and_saving(tmp_path):
    original = make(image_size=12, resize="crop", max_tokens=7, mean=(0.1, 0.2, 0.3))
    original.save(tmp_path)
    img = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 21, 3), dtype=np.uint8))
    texts = ["a dog runs in the snow", "zebra!"]
    twins = [pickle.loads(pickle.dumps(original)), Preprocess.from_pretrained(tmp_path)]  # noqa: S301
    for twin in twins:
        assert twin.config == original.config
        assert torch.equal(twin.image(img), original.image(img))
        for ours, theirs in zip(original.text(texts), twin.text(texts), strict=True):
            assert torch.equal(ours, theirs)


def test_preprocess_refuses_a_broken_tokenizer(copy):
    (copy / TOKENIZER_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a readable tokenizer"):
        Preprocess.from_pretrained(copy)


def test_preprocess_refuses_unknown_keys(copy):
    (copy / PREPROCESS_FILE).write_text('{"image_size": 32, "sise": 3}')
    with pytest.raises(ConfigError, match=r"preprocess\.json: unknown key sise"):
        Preprocess.from_pretrained(copy)


def test_preprocess_refuses_a_missing_file(copy):
    (copy / PREPROCESS_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"preprocess\.json is missing"):
        Preprocess.from_pretrained(copy)


def test_pixels_are_bytes_that_normalise_to_the_picture():
    """Bit for bit: training moves bytes and normalises them where the model is."""
    made = make(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    img = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 17, 3), dtype=np.uint8))
    pixels_CHW = made.pixels(img)
    assert (pixels_CHW.dtype, pixels_CHW.shape) == (torch.uint8, (3, 8, 8))
    resized = img.resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels_CHW.permute(1, 2, 0), np.asarray(resized))
    assert torch.equal(made.normalise(pixels_CHW), made.image(img))
    assert torch.equal(made.normalise(pixels_CHW[None])[0], made.image(img))


def test_a_text_is_cut_where_the_last_token_that_is_read_ends():
    preprocess = make(max_tokens=6)
    words = ["dog", "a", "red", "snow"]
    text = " ".join(words * 3)
    [end] = preprocess.tokens([text]).cut_at_B
    assert 0 < end < len(text)
    for read in (text[:end], text[:end] + " " + "x" * 10_000, text[:end] + "\ud800 dog" * 99):
        tok_BL, _ = preprocess.text([text, read])
        assert tok_BL[0].tolist() == tok_BL[1].tolist()
    texts = ["", "dog", text[:end], f"{text[:end]} dog"]
    assert preprocess.tokens(texts).cut_at_B == (None, None, None, end)


def test_a_long_text_of_few_tokens_is_read_to_its_end():
    preprocess = make(max_tokens=6)
    far = " " * 10_000
    few, many = f"dog{far}dog", f"dog{far}{'dog ' * 20}"
    whole, cut = preprocess.tokens([few, many]).cut_at_B
    assert whole is None
    assert cut > len(far)
