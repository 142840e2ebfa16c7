"""Coloured pictures with captions, and the configuration of a run that takes seconds."""

import functools
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from transformers import BertConfig, BertModel

from cots_model.config import ImageTowerConfig, ModelConfig, PreprocessConfig, load_config
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer, tiny_model_config
from training.config import TrainConfig, load_train_config
from training.data import Example, read_examples
from training.dvae import Dvae
from training.tokenizer_config import DvaeConfig
from training.tokenizer_source import save_dvae

COLOURS = ("red", "blue", "green", "yellow", "black", "white")
EXACT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PAIRS = tuple(product(COLOURS, COLOURS))[:32]


def two_colours(top: str, bottom: str, side: int = 32) -> Image.Image:
    img = Image.new("RGB", (side, side), bottom)
    img.paste(top, (0, 0, side, side // 2))
    return img


def png(img: Image.Image) -> bytes:
    file = io.BytesIO()
    img.save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_folder(folder: Path, pairs: Sequence[tuple[str, str]], side: int = 32) -> Path:
    folder.mkdir(parents=True)
    for number, (top, bottom) in enumerate(pairs):
        two_colours(top, bottom, side).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"{top} on {bottom}")
    return folder


@pytest.fixture(scope="session")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 pictures of two colours with two captions each."""
    members = []
    for number, (top, bottom) in enumerate(PAIRS):
        captions = {"captions": [f"{top} on {bottom}", f"a {top} and {bottom} man"]}
        members += [
            (f"{number:03d}.png", png(two_colours(top, bottom))),
            (f"{number:03d}.json", json.dumps(captions).encode()),
        ]
    return write_tar(tmp_path_factory.mktemp("data") / "train.tar", members)


@pytest.fixture(scope="session")
def examples(shard: Path) -> list[Example]:
    return read_examples([str(shard)])


@pytest.fixture(scope="session")
def preprocess() -> Preprocess:
    return Preprocess(PreprocessConfig(image_size=32, max_tokens=32), make_tokenizer())


@pytest.fixture(scope="session")
def model_yaml(tmp_path_factory: pytest.TempPathFactory, preprocess: Preprocess) -> Path:
    """The tiny model as a model configuration of one's own."""
    model = tiny_model_config(preprocess.tokenizer.get_vocab_size())
    values = {"model": model.model_dump(mode="json"), "preprocess": preprocess.config.model_dump()}
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    return path


@pytest.fixture
def exact_yaml(model_yaml: Path, tmp_path: Path) -> Path:
    """The tiny model without dropout, whose masks depend on the process."""
    values = yaml.safe_load(model_yaml.read_text())
    values["model"]["text"]["options"] |= EXACT
    path = tmp_path / "exact.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Hugging Face saves a BERT, pooler and tokenizer included."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = make_tokenizer()
    options = tiny_model_config(tokenizer.get_vocab_size()).text.options
    torch.manual_seed(5)
    BertModel(BertConfig(**options)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


@pytest.fixture
def model(model_yaml: Path) -> CotsModel:
    """Freshly drawn weights, as training starts from."""
    torch.manual_seed(0)
    return CotsModel(load_config(str(model_yaml)).model)


@pytest.fixture(scope="session")
def configure_in(shard: Path, model_yaml: Path, bert: Path) -> Callable[..., TrainConfig]:
    """Write a run's YAML file, in a folder, with some keys changed, and load it."""

    def make(folder: Path, *overrides: str, **changes: Any) -> TrainConfig:
        values = {
            "name": "tiny-run",
            "model": str(model_yaml),
            "init": {"text": str(bert)},
            "data": {"train": [str(shard)], "cache_dir": str(folder / "cache")},
            "objective": {"instance": {"queue_length": 12, "momentum": 0.9}},
            "optimiser": {"lr": 1e-3, "constant_epochs": 20},
            "epochs": 2,
            "batch_size": 8,
            "device": "cpu",
            "output": str(folder / "run"),
        }
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return load_train_config(path, overrides)

    return make


@pytest.fixture
def configure(
    configure_in: Callable[..., TrainConfig], tmp_path: Path
) -> Callable[..., TrainConfig]:
    """The same, in the folder of the test."""
    return functools.partial(configure_in, tmp_path)


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """A folder with an image tokenizer for the tiny model's patches, with random weights."""
    torch.manual_seed(7)
    save_dvae(Dvae(DvaeConfig(vocab_size=8, grid=4, widths=[8, 8])), tmp_path / "codes")
    return tmp_path / "codes"


@pytest.fixture
def all_losses(codes: Path) -> tuple[str, ...]:
    """Switches every loss on."""
    return (
        "objective.task.weight=1",
        "objective.language.weight=1",
        f"objective.vision={{weight: 1, tokenizer: '{codes}', min_block: 2}}",
    )


@pytest.fixture
def convolutional() -> CotsModel:
    """The tiny model with EfficientNet-lite0 as its image tower."""
    torch.manual_seed(0)
    tiny = tiny_model_config(make_tokenizer().get_vocab_size())
    image = ImageTowerConfig(arch="efficientnet_lite0", image_size=64)
    return CotsModel(ModelConfig(name="convolutional", image=image, text=tiny.text))


def assert_equal_states(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def assert_equal_nested(ours, theirs, place="") -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key, value in ours.items():
            assert_equal_nested(value, theirs[key], f"{place}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), place
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal_nested(*pair, f"{place}[{number}]")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), place
    elif not place.endswith("wall_s"):
        assert ours == theirs, place
