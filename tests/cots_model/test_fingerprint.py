"""What the fingerprint of a checkpoint covers, and that it stays the same over versions."""

from safetensors.torch import load_file, save_file

from cots_model.checkpoint import (
    CARD_FILE,
    PREPROCESS_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    CheckpointConfig,
    read_config,
    write_config,
)
from cots_model.encoder import Encoder
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tiny_checkpoint
from tests.cots_model.conftest import edit_json, rewrite_config


def test_fingerprint_is_stable_across_saving_and_loading(tiny_checkpoint, tmp_path):
    model, preprocess = (cls.from_pretrained(tiny_checkpoint) for cls in (CotsModel, Preprocess))
    returned = model.save_pretrained(tmp_path, preprocess, card="another card")
    stored = read_config(tiny_checkpoint).fingerprint
    assert returned == read_config(tmp_path).fingerprint == stored
    assert len(stored) == 64
    assert Encoder.load(tmp_path, device="cpu").fingerprint == stored


def test_fingerprint_depends_on_the_seed_alone(tiny_checkpoint, tmp_path):
    again, other = (make_tiny_checkpoint(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert read_config(again).fingerprint == read_config(tiny_checkpoint).fingerprint
    assert read_config(other).fingerprint != read_config(tiny_checkpoint).fingerprint


def test_fingerprint_ignores_the_card(copy, tiny_checkpoint):
    (copy / CARD_FILE).write_text("rewritten")
    assert read_config(copy).fingerprint == read_config(tiny_checkpoint).fingerprint
    (copy / CARD_FILE).unlink()
    assert read_config(copy).fingerprint == read_config(tiny_checkpoint).fingerprint


def test_fingerprint_changes_with_one_weight(copy):
    before = read_config(copy).fingerprint
    weights = load_file(copy / WEIGHTS_FILE)
    weights["text_projection.bias"][0] += 1e-3
    save_file(weights, copy / WEIGHTS_FILE)
    assert rewrite_config(copy) != before


def test_fingerprint_changes_with_the_preprocessing(copy):
    before = read_config(copy).fingerprint
    edit_json(copy / PREPROCESS_FILE, resize="crop")
    assert rewrite_config(copy) != before


def test_fingerprint_changes_with_the_tokenizer(copy):
    before = read_config(copy).fingerprint
    text = (copy / TOKENIZER_FILE).read_text()
    assert '"lowercase":true' in text.replace(" ", "")
    (copy / TOKENIZER_FILE).write_text(text.replace("true", "false", 1))
    assert rewrite_config(copy) != before


def test_fingerprint_changes_with_the_model_configuration(copy):
    before = read_config(copy)
    other = before.model.model_copy(update={"name": "other"})
    assert write_config(copy, other, "float32").fingerprint != before.fingerprint


OLD = {
    "format": "cots-checkpoint",
    "format_version": 1,
    "model": {
        "name": "old",
        "image": {"arch": "vit_tiny_patch16_224", "image_size": 32, "options": {"depth": 2}},
        "text": {"options": {"hidden_size": 32}},
        "embed_dim": 8,
    },
    "storage": "float32",
    "files": {"model.safetensors": "00", "preprocess.json": "11", "tokenizer.json": "22"},
}
PINNED = "3529eaecee5041cfd3fa4ca70cc966379231c69f483e2598a9f4c442d5ee5ab5"


def test_fingerprint_of_an_old_checkpoint_never_changes():
    """Galleries name it: a new configuration key must have a default that changes nothing."""
    assert CheckpointConfig.model_validate(OLD).fingerprint == PINNED


def test_fingerprint_leaves_out_defaults():
    image = OLD["model"]["image"] | {"pool": "cls", "side": None, "beside": []}
    spelled_out = OLD | {"model": OLD["model"] | {"image": image}}
    assert CheckpointConfig.model_validate(spelled_out).fingerprint == PINNED
