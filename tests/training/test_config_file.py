"""One YAML file on top of another."""

import pytest

from cots_model.errors import ConfigError
from training.config import load_train_config
from training.tokenizer_config import load_tokenizer_config

BASE = """
name: x
model: cots-mini
data: {train: [a.tar, b.tar], evaluate: [c.tar], num_workers: 2}
optimiser: {lr: 1.0e-4, lr_scale: {image: 2, text: 3}}
epochs: 3
batch_size: 2
output: out
"""


@pytest.fixture
def write(tmp_path):
    """Write `runs/mine.yaml` above `base.yaml`."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "runs").mkdir()

    def make(text):
        path = tmp_path / "runs/mine.yaml"
        path.write_text(text)
        return path

    return make


def test_a_file_changes_its_base(write, tmp_path, monkeypatch):
    """Mappings key by key, lists as a whole; the base is sought beside the file."""
    monkeypatch.chdir("/")
    config = load_train_config(
        write(
            "base: ../base.yaml\n"
            "name: y\n"
            "data: {train: [d.tar]}\n"
            "optimiser: {lr_scale: {text: 4}}\n"
            "objective: {task: {weight: 1}}\n"
        )
    )
    plain = load_train_config(tmp_path / "base.yaml")
    assert config.name == "y"
    assert [source.path for source in config.data.train] == ["d.tar"]
    assert config.data.evaluate == plain.data.evaluate
    assert config.data.num_workers == 2
    assert config.optimiser.lr_scale == {"image": 2, "text": 4}
    assert config.optimiser.lr == 1e-4
    assert config.objective.task.weight == 1
    assert (config.model, config.epochs, config.output) == (plain.model, 3, plain.output)


def test_overrides_come_last(write):
    path = write("base: ../base.yaml\nepochs: 4\n")
    assert load_train_config(path).epochs == 4
    assert load_train_config(path, ["epochs=5"]).epochs == 5
    assert load_train_config(path, ["optimiser.lr_scale.image=7"]).optimiser.lr_scale["image"] == 7


def test_a_base_alone_is_enough(write, tmp_path):
    assert load_train_config(write("base: ../base.yaml")) == load_train_config(
        tmp_path / "base.yaml"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "base: ../base.yaml\nepoch: 3",
            r"mine\.yaml with base .*base\.yaml: unknown key epoch",
        ),
        (
            "base: ../base.yaml\noptimiser: {rate: 1}",
            r"optimiser\.rate; accepted here: lr, ",
        ),
        ("base: ../base.yaml\noptimiser: 3", "optimiser: it must be an object"),
        ("base: no.yaml", r"mine\.yaml names the base .*no\.yaml, and"),
        ("base: [a]", r"mine\.yaml: base is \['a'\]; name a YAML file"),
        ("base:", "base is None; name a YAML file"),
        ("base: ''", "base is ''; name a YAML file"),
        ("base: mine.yaml", r"mine\.yaml is a base and names one itself \(mine\.yaml\)"),
        ("base: ..", "there is no such file"),
    ],
)
def test_bad_bases_are_refused(write, text, says):
    with pytest.raises(ConfigError, match=says):
        load_train_config(write(text))


def test_unknown_keys_of_a_base_are_refused(write, tmp_path):
    path = write("base: ../base.yaml")
    (tmp_path / "base.yaml").write_text(BASE + "epoch: 3\n")
    with pytest.raises(ConfigError, match="unknown key epoch; did you mean epochs"):
        load_train_config(path)


def test_no_override_names_a_base(write):
    with pytest.raises(ConfigError, match="unknown key base"):
        load_train_config(write("base: ../base.yaml"), ["base=../base.yaml"])


def test_tokenizer_runs_take_a_base_too(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "{model: {grid: 4}, data: {train: [a]}, epochs: 1, batch_size: 2, output: out}"
    )
    path = tmp_path / "mine.yaml"
    path.write_text("base: base.yaml\nmodel: {vocab_size: 64}\n")
    config = load_tokenizer_config(path)
    assert (config.model.grid, config.model.vocab_size) == (4, 64)
