"""`cots train tokenizer` as people type it."""

import json
import re

import pytest
import yaml
from PIL import Image

from training.tokenizer_source import load_tokenizer_model


@pytest.fixture
def config(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, colour in enumerate(["red", "blue", "white", "black"]):
        Image.new("RGB", (40, 30), colour).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"{colour}")
    values = {
        "model": {"vocab_size": 8, "grid": 2, "widths": [8, 8], "num_blocks": 0, "code_dim": 4},
        "data": {"train": [str(photos)]},
        "picture": {"image_size": 16},
        "collapse": {"min_perplexity": 1, "min_usage": 0, "min_kl": 0},
        "epochs": 2,
        "batch_size": 2,
        "device": "cpu",
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "tokenizer.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_tokenizer_is_trained_and_can_be_loaded(cots, config, tmp_path):
    folder = tmp_path / "other"
    status, out, err = cots(
        "train", "tokenizer", "--config", config, "epochs=3", f"output={folder}"
    )
    assert (status, err) == (0, "")
    said = re.fullmatch(
        rf"{re.escape(str(folder))}: ([0-9a-f]{{16}})\n"
        r"reconstruction (0\.\d{5}), perplexity \d\.\d, \d+\.\d% of the codes used\n",
        out,
    )
    assert said is not None
    assert load_tokenizer_model(folder).grid(16) == 2
    assert len((folder / "log.jsonl").read_text().splitlines()) == 3
    assert (folder / "reconstructions.png").is_file()
    assert not (tmp_path / "run").exists()
    status, out, _ = cots(
        "train", "tokenizer", "--json", "--config", config, "epochs=3", f"output={folder}"
    )
    told = json.loads(out)
    assert (status, told["tokenizer"]) == (0, str(folder))
    assert told["fingerprint"].startswith(said[1])
    assert f"{told['reconstruction']:.5f}" == said[2]


def test_tokenizer_logs_when_asked(cots, config):
    status, _, err = cots("--log-level", "info", "train", "tokenizer", "--config", config)
    assert status == 0
    assert re.search(r"message=epoch 1: reconstruction 0\.\d+, kl \d.*perplexity \d", err)


def test_a_collapse_is_status_1_in_one_line(cots, config):
    status, out, err = cots(
        "train", "tokenizer", "--config", config, "collapse.min_perplexity=7.99"
    )
    assert (status, out) == (1, "")
    assert re.fullmatch(r"Error: the codebook collapsed: after epoch 1 .*\n", err)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("epoch=1", "unknown key epoch; did you mean epochs"),
        ("nonsense", "write key=value"),
        ("data.train=[nowhere.tar]", "nowhere.tar"),
        ("batch_size=5", "4 pictures do not fill one batch of 5"),
        ("picture.image_size=4", "picture.image_size 4 is less than the encoder's input of 8"),
        ("device=cuda:99", "device 'cuda:99' is not here"),
    ],
)
def test_tokenizer_refuses_bad_input_in_one_line(cots, config, override, says):
    status, out, err = cots("train", "tokenizer", "--config", config, override)
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert says in err
    assert err.count("\n") == 1
