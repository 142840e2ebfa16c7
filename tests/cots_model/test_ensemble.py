"""An ensemble: its score is the mean of its members', and it is a checkpoint like any other."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.checkpoint import CONFIG_FILE, read_config
from cots_model.config import PreprocessConfig
from cots_model.cores import on_idle_core
from cots_model.encoder import Encoder
from cots_model.ensemble import EnsembleEncoder, write_ensemble
from cots_model.errors import CheckpointError, ConfigError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tiny_checkpoint, make_tokenizer, tiny_model_config
from tests.cots_model.test_encoder import TEXTS, pictures


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory) -> Path:
    """Other pixels, tokens, widths and means than the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint") / "other"
    tokenizer = make_tokenizer(["dogs", "cats", "red", "snow"])
    config = tiny_model_config(tokenizer.get_vocab_size(), embed_dim=48)
    image = config.image.model_copy(update={"image_size": 48})
    preprocess = PreprocessConfig(image_size=48, max_tokens=12, resize="crop", mean=(0.5,) * 3)
    torch.manual_seed(3)
    model = CotsModel(config.model_copy(update={"image": image, "name": "other"}))
    model.save_pretrained(folder, Preprocess(preprocess, tokenizer), card="# other")
    return folder


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, other_checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ensemble") / "both"
    write_ensemble([tiny_checkpoint, other_checkpoint], path)
    return path


@pytest.fixture(scope="module")
def members(tiny_checkpoint, other_checkpoint) -> list[Encoder]:
    return [Encoder.load(path, device="cpu") for path in (tiny_checkpoint, other_checkpoint)]


@pytest.fixture(scope="module")
def both(folder) -> Encoder:
    return Encoder.load(folder, device="cpu")


def scores(encoder: Encoder) -> np.ndarray:
    return encoder.encode_texts(TEXTS) @ encoder.encode_images(pictures(7)).T


def test_its_score_is_the_mean_of_its_members(both, members):
    mean_MN = (scores(members[0]) + scores(members[1])) / 2
    np.testing.assert_allclose(scores(both), mean_MN, rtol=0, atol=1e-6)
    assert mean_MN.std() > 0.001


def test_three_members_count_a_third_each(members, tmp_path):
    third = Encoder.load(make_tiny_checkpoint(tmp_path, seed=9, embed_dim=8), device="cpu")
    encoder = EnsembleEncoder([*members, third])
    mean_MN = sum(scores(member) for member in (*members, third)) / 3
    np.testing.assert_allclose(scores(encoder), mean_MN, rtol=0, atol=1e-6)
    assert encoder.dim == 32 + 48 + 8


def test_a_text_is_cut_where_the_first_member_cuts_it(both, members):
    few, some, many = "dog", "dog " * 9, "dog " * 400
    ends = [member.read_texts([few, some, many]).cut_at_B for member in members]
    whole, cut_by_one, cut_by_both = both.read_texts([few, some, many]).cut_at_B
    assert whole is None
    assert {cut_by_one, None} == {of_member[1] for of_member in ends}
    assert cut_by_both == min(of_member[2] for of_member in ends)


def test_it_gives_float32_unit_vectors(both):
    for z_BE in (both.encode_texts(TEXTS), both.encode_images(pictures(5))):
        assert (z_BE.shape, z_BE.dtype) == ((5, 80), np.float32)
        np.testing.assert_allclose(np.linalg.norm(z_BE, axis=1), 1.0, atol=1e-6)
    assert both.encode_texts([]).shape == both.encode_images([]).shape == (0, 80)


def test_its_pixels_are_those_of_its_members(both):
    imgs = pictures(5)
    carried = pickle.loads(pickle.dumps(both.preprocess))  # noqa: S301 - as to a decoding worker
    img_BX = torch.stack([carried.image(img) for img in imgs])
    assert img_BX.shape == (5, 3 * (32 * 32 + 48 * 48))
    np.testing.assert_allclose(both.encode_pixels(img_BX), both.encode_images(imgs), atol=1e-6)
    assert both.preprocess.image_size == 48


def test_a_core_is_idle_when_the_last_member_has_no_part_left(folder, monkeypatch):
    order = []
    read_texts, encode_pixels = Encoder.read_texts, Encoder.encode_pixels

    def texts(self, *args, **options):
        order.append("member")
        return read_texts(self, *args, **options)

    def pixels(self, *args):
        order.append("member")
        return encode_pixels(self, *args)

    both = Encoder.load(folder, device="cpu")
    img_BX = torch.stack([both.preprocess.image(img) for img in pictures(5)])
    monkeypatch.setattr(Encoder, "read_texts", texts)
    monkeypatch.setattr(Encoder, "encode_pixels", pixels)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for encode in (lambda: both.encode_texts(TEXTS), lambda: both.encode_pixels(img_BX)):
            order.clear()
            with on_idle_core(lambda: order.append("idle")):
                encode()
            assert order[:3] == ["member", "member", "idle"]
    finally:
        torch.set_num_threads(before)


def test_members_with_equal_preprocessing_share_pixels(tiny_checkpoint, tmp_path):
    other = make_tiny_checkpoint(tmp_path / "other", seed=1)
    both = EnsembleEncoder([Encoder.load(c, device="cpu") for c in (tiny_checkpoint, other)])
    imgs = pictures(3)
    img_BX = torch.stack([both.preprocess.image(img) for img in imgs])
    assert img_BX.shape == (3, 3 * 32 * 32)
    np.testing.assert_allclose(both.encode_pixels(img_BX), both.encode_images(imgs), atol=1e-6)


def test_it_is_a_checkpoint_like_any_other(both, folder, members, tmp_path):
    assert both.name == "tiny+other"
    assert both.fingerprint == EnsembleEncoder(members).fingerprint
    assert both.fingerprint not in {member.fingerprint for member in members}
    shutil.copytree(folder, tmp_path / "moved")
    assert Encoder.load(tmp_path / "moved", device="cpu").fingerprint == both.fingerprint


def test_its_fingerprint_covers_every_member_and_their_order(
    both, members, tiny_checkpoint, tmp_path
):
    third = Encoder.load(make_tiny_checkpoint(tmp_path, seed=9), device="cpu")
    prints = {EnsembleEncoder(m).fingerprint for m in (members[::-1], [members[0], third])}
    assert len(prints | {both.fingerprint}) == 3


def test_a_name_can_be_given(tiny_checkpoint, other_checkpoint, tmp_path, both):
    returned = write_ensemble([tiny_checkpoint, other_checkpoint], tmp_path / "e", name="mine")
    loaded = Encoder.load(tmp_path / "e", device="cpu")
    assert (loaded.name, loaded.fingerprint, returned) == ("mine", both.fingerprint, returned)
    assert "# mine" in (tmp_path / "e/README.md").read_text()


def test_a_member_can_be_used_by_itself(folder, other_checkpoint):
    member = Encoder.load(folder / "member-1", device="cpu")
    assert member.fingerprint == read_config(other_checkpoint).fingerprint


def test_what_wants_one_model_is_told_to_take_a_member(folder, both):
    with pytest.raises(CheckpointError, match=r"is an ensemble .* such as .*member-0"):
        CotsModel.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"'tiny\+other' is an ensemble"):
        _ = both.model


def test_members_that_make_no_ensemble_are_refused(folder, tiny_checkpoint, both, tmp_path):
    out = tmp_path / "out"
    for sources, says in (
        ([tiny_checkpoint], "2 to 8 checkpoints, not 1"),
        ([tiny_checkpoint] * 9, "2 to 8 checkpoints, not 9"),
        ([tiny_checkpoint, tiny_checkpoint], "the same checkpoint"),
        ([tiny_checkpoint, folder], "is an ensemble of checkpoints"),
        ([tiny_checkpoint, tmp_path / "none"], "no checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=says):
            write_ensemble(sources, out)
    assert not out.exists()
    with pytest.raises(CheckpointError, match="an ensemble itself"):
        EnsembleEncoder([both, Encoder.load(tiny_checkpoint, device="cpu")])


def test_a_folder_that_holds_something_is_left_alone(tiny_checkpoint, other_checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="is not empty"):
        write_ensemble([tiny_checkpoint, other_checkpoint], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_or_foreign_member_is_named(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "member-1")
    with pytest.raises(CheckpointError, match="is incomplete: member-1 is missing"):
        Encoder.load(copy, device="cpu")
    make_tiny_checkpoint(copy / "member-1", seed=4)
    with pytest.raises(CheckpointError, match="member-1 is another checkpoint"):
        Encoder.load(copy, device="cpu")
    weights = copy / "member-0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"member-0/model\.safetensors is damaged"):
        Encoder.load(copy, device="cpu")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"format_version": 2}, CheckpointError, "checkpoint format 2; this version reads 1"),
        ({"members": ["../../x", "y"]}, ConfigError, "members"),
        ({"members": ["0" * 64]}, ConfigError, "members"),
        ({"weights": [1, 2]}, ConfigError, "weights"),
    ],
)
def test_a_bad_configuration_is_refused(folder, tmp_path, changes, error, says):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(error, match=says):
        Encoder.load(copy, device="cpu")


def test_it_embeds_pictures_of_any_mode_that_members_do(both):
    with pytest.raises(ValueError, match="an RGB picture is needed"):
        both.preprocess.image(Image.new("L", (9, 9)))
