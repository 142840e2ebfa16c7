"""Runs as YAML files; the shipped ones are in `test_shipped_configs.py`."""

from pathlib import Path

import pytest

from cots_model.errors import ConfigError
from training.config import load_train_config

MINIMAL = """
name: x
model: cots-mini
data: {train: [a.tar]}
epochs: 1
batch_size: 2
output: out
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def test_defaults_are_the_papers(minimal):
    config = load_train_config(minimal)
    assert (config.objective.instance.momentum, config.objective.instance.temperature) == (
        0.99,
        0.05,
    )
    assert config.objective.instance.queue_length == 12_800
    assert (config.optimiser.lr, config.optimiser.weight_decay) == (5e-5, 0.02)
    assert config.optimiser.constant_epochs == 5
    assert config.init.image == config.init.text == "random"


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("optimiser.lr=1e-4", lambda c: c.optimiser.lr, 1e-4),
        ("optimiser.lr=1E-4", lambda c: c.optimiser.lr, 1e-4),
        ("epochs=3", lambda c: c.epochs, 3),
        ("objective.instance.queue_length=1e3", lambda c: c.objective.instance.queue_length, 1000),
        ("name=my run", lambda c: c.name, "my run"),
        (
            "data.train=[b.tar, 'c-{0..3}.tar']",
            lambda c: [source.path for source in c.data.train],
            ["b.tar", "c-{0..3}.tar"],
        ),
        ("optimiser.lr_scale={image: 5}", lambda c: c.optimiser.lr_scale, {"image": 5.0}),
        ("freeze_image=true", lambda c: c.freeze_image, True),
        ("output=runs/a=b", lambda c: c.output, Path("runs/a=b")),
    ],
)
def test_overrides_change_single_keys(minimal, override, read, expected):
    config = load_train_config(minimal, [override])
    assert read(config) == expected
    assert config.batch_size == 2


def test_later_overrides_win(minimal):
    assert load_train_config(minimal, ["epochs=3", "epochs=4"]).epochs == 4


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("epochs", "write key=value"),
        ("=3", "write key=value"),
        ("", "write key=value"),
        ("epoch=3", "unknown key epoch; did you mean epochs"),
        ("optimiser.rate=3", r"unknown key optimiser\.rate; accepted here: lr, "),
        ("epochs.x=3", "epochs has no keys below it"),
        ("epochs=0", "epochs=0 trains nothing"),
        ("epochs=two", "epochs: it must be a whole number"),
        ("epochs=", "epochs: "),
        ("epochs=[", "the value is no YAML"),
        ("optimiser.lr=nan", r"optimiser\.lr: "),
        ("optimiser.lr=inf", r"optimiser\.lr: "),
        ("optimiser.lr=-1", r"optimiser\.lr: "),
        ("optimiser.lr_scale={image: -1}", r"optimiser\.lr_scale\.image: "),
        ("objective.instance.momentum=1.5", r"objective\.instance\.momentum: "),
        ("data.train=[]", r"data\.train: "),
        ("seed=-1", "seed: "),
        ("precision=fp16", "precision: .*'fp32' or 'bf16'"),
    ],
)
def test_bad_overrides_are_refused(minimal, override, says):
    with pytest.raises(ConfigError, match=says) as caught:
        load_train_config(minimal, [override])
    assert "\n" not in str(caught.value) or "YAML" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "just text", "a: [", "\x00"])
def test_bad_files_are_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"(?s)run\.yaml .*see training/configs"):
        load_train_config(path)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*no\.yaml"):
        load_train_config(tmp_path / "no.yaml")


def test_missing_keys_are_named(minimal):
    minimal.write_text(MINIMAL.replace("epochs: 1", ""))
    with pytest.raises(ConfigError, match="epochs is missing"):
        load_train_config(minimal)


def test_every_level_has_a_weight_and_one_must_count(minimal):
    config = load_train_config(minimal, ["objective.instance.weight=0.5"])
    weights = config.objective.weights()
    assert (weights["image_to_text"], weights["text_to_image"], weights["task"]) == (0.5, 0.5, 0)
    with pytest.raises(ConfigError, match="every loss has weight 0"):
        load_train_config(minimal, ["objective.instance.weight=0"])
