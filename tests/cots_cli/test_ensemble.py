"""`cots ensemble` as people type it, and what the other commands do with its folder."""

import json

import numpy as np
import pytest
from PIL import Image

from cots_model.encoder import Encoder
from cots_model.testing import make_tiny_checkpoint
from tests.cots_cli.conftest import save_noise
from training.data import read_examples
from training.evaluate import captions_of
from training.metrics import retrieval_metrics


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(9):
        save_noise(folder / f"{number}.png", number)
        (folder / f"{number}.txt").write_text(f"caption {number} of a dog")
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("other"), seed=1, embed_dim=16)


@pytest.fixture
def ensemble(cots, tiny_checkpoint, other, tmp_path):
    folder = tmp_path / "both"
    status, out, err = cots("ensemble", tiny_checkpoint, other, "--output", folder)
    assert (status, err) == (0, "")
    assert out.startswith(f"{folder}: ")
    assert out.endswith(", 2 checkpoints\n")
    return folder


def test_a_gallery_of_an_ensemble_is_searched_by_the_mean_score(
    cots, photos, ensemble, tiny_checkpoint, other, tmp_path
):
    gallery = tmp_path / "gallery"
    fixed = ["--gallery", gallery, "--checkpoint", ensemble, "--json"]
    status, _, _ = cots("index", "build", photos, *fixed, "--device", "cpu", "--workers", 1)
    assert status == 0
    status, out, err = cots("search", "a red dog", *fixed, "--device", "cpu")
    assert (status, err) == (0, "")
    hits = {hit["id"]: hit["score"] for hit in json.loads(out)["hits"]}
    names = [f"{number}.png" for number in range(9)]
    imgs = [Image.open(photos / name).convert("RGB") for name in names]
    encoders = [Encoder.load(folder, device="cpu") for folder in (tiny_checkpoint, other)]
    parts = [e.encode_images(imgs) @ e.encode_texts(["a red dog"])[0] for e in encoders]
    expected = np.mean(parts, axis=0)
    np.testing.assert_allclose([hits[name] for name in names], expected, atol=1e-6)
    assert list(hits) == [names[row] for row in np.argsort(-expected)]
    status, out, _ = cots("search", "--image", photos / "4.png", *fixed)
    assert json.loads(out)["hits"][0]["id"] == "4.png"
    status, _, err = cots("search", "x", "--gallery", gallery, "--checkpoint", other)
    assert status == 2
    assert "made by another model" in err or "fingerprint" in err


def test_evaluate_averages_the_similarities(cots, photos, ensemble, tiny_checkpoint, other):
    examples = read_examples([str(photos)])
    texts, owner_M = captions_of(examples)
    score_MN = np.zeros((len(texts), len(examples)))
    for folder in (tiny_checkpoint, other):
        encoder = Encoder.load(folder, device="cpu")
        image_NE = encoder.encode_images([example.picture() for example in examples])
        score_MN += encoder.encode_texts(texts) @ image_NE.T / 2
    expected = retrieval_metrics(np.eye(len(examples)), score_MN, owner_M)
    fixed = ["evaluate", "--data", photos, "--device", "cpu", "--json"]
    for arguments in (
        ["--checkpoint", tiny_checkpoint, "--ensemble", other],
        ["--checkpoint", ensemble],
    ):
        status, out, err = cots(*fixed, *arguments)
        assert (status, err) == (0, "")
        assert json.loads(out)["text_to_image"]["r1"] == expected.text_to_image.r1
        assert json.loads(out)["image_to_text"]["median_rank"] == expected.image_to_text.median_rank


def test_ensemble_prints_json(cots, tiny_checkpoint, other, tmp_path):
    arguments = ["--output", tmp_path / "e", "--name", "mine", "--json"]
    status, out, _ = cots("ensemble", tiny_checkpoint, other, *arguments)
    assert status == 0
    encoder = Encoder.load(tmp_path / "e", device="cpu")
    assert json.loads(out) == {
        "checkpoint": str(tmp_path / "e"),
        "fingerprint": encoder.fingerprint,
    }


def test_bad_input_is_one_line(cots, tiny_checkpoint, other, photos, tmp_path):
    out = ["--output", tmp_path / "e"]
    for arguments, says in (
        (["ensemble", tiny_checkpoint, *out], "2 to 8 checkpoints, not 1"),
        (["ensemble", tiny_checkpoint, "nowhere", *out], "no checkpoint 'nowhere'"),
        (["ensemble", *out], "Missing argument"),
        (["ensemble", tiny_checkpoint, other, "--output", photos], "is not empty"),
        (["evaluate", "--data", photos, "--checkpoint", other, "--ensemble", other], "the same"),
    ):
        status, printed, err = cots(*arguments)
        assert (status, printed) == (2, "")
        assert says in err
        assert err.count("\n") == 1
