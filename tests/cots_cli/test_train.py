"""`cots train pretrain` as people type it: a real run of a tiny model."""

import json
import re

import pytest
import yaml
from PIL import Image

from cots_model.encoder import Encoder
from cots_model.testing import make_tokenizer, tiny_model_config
from tests.conftest import REPOSITORY


@pytest.fixture
def config(tiny_checkpoint, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, colour in enumerate(["red", "blue", "white", "black"]):
        Image.new("RGB", (32, 32), colour).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"a {colour} dog")
    model = tiny_model_config(make_tokenizer().get_vocab_size()).model_dump(mode="json")
    preprocess = {"image_size": 32, "max_tokens": 16}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"model": model, "preprocess": preprocess}))
    values = {
        "name": "from-the-shell",
        "model": str(tmp_path / "tiny.yaml"),
        "init": {"text": f"checkpoint:{tiny_checkpoint}"},
        "data": {"train": [str(photos)], "cache_dir": str(tmp_path / "cache")},
        "epochs": 3,
        "batch_size": 2,
        "device": "cpu",
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_pretrain_writes_a_checkpoint_and_says_where(cots, config, tmp_path, monkeypatch):
    monkeypatch.delenv("COTS_LOG_LEVEL")
    status, out, err = cots(
        "train", "pretrain", "--config", config, "epochs=1", f"output={tmp_path / 'other'}"
    )
    assert status == 0
    assert re.search(r"^time=\S+ level=INFO .* message=epoch 0: loss \d", err, re.M)
    encoder = Encoder.load(tmp_path / "other", device="cpu")
    assert encoder.name == "from-the-shell"
    assert out.startswith(f"{tmp_path / 'other'}: {encoder.fingerprint[:16]}, ")
    assert out.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert len((tmp_path / "other/log.jsonl").read_text().splitlines()) == 2


def test_pretrain_prints_scores_of_the_evaluation_data(cots, config, tmp_path):
    status, out, _ = cots(
        "train", "pretrain", "--config", config, f"data.evaluate=['{tmp_path / 'photos'}']"
    )
    assert status == 0
    assert re.search(r"text -> image +\d+\.\d\d +100\.00 +100\.00 +\d\.\d +4\n", out)


def test_results_are_told_to_machines_too(cots, config, tiny_checkpoint, tmp_path):
    run = ("--config", config, "--json", "epochs=1")
    status, out, _ = cots("train", "pretrain", *run, f"data.evaluate=['{tmp_path / 'photos'}']")
    assert status == 0
    told = json.loads(out)
    assert told["checkpoint"] == str(tmp_path / "run")
    assert told["fingerprint"] == Encoder.load(tmp_path / "run", device="cpu").fingerprint
    assert told["metrics"]["text_to_image"]["r10"] == 100.0
    image, output = f"init.image=checkpoint:{tiny_checkpoint}", f"output={tmp_path / 'tuned'}"
    status, out, _ = cots("train", "finetune", *run, image, output)
    assert status == 0
    assert json.loads(out)["metrics"] is None
    assert json.loads(out)["seconds"] > 0


def test_pretrain_is_as_quiet_as_asked(cots, config, tmp_path):
    run = ("train", "pretrain", "--config", config, "epochs=1")
    status, _, err = cots("--log-level", "info", *run)
    assert status == 0
    assert re.search(r"level=INFO logger=training\.engine\.run message=epoch 0: loss \d", err)
    assert "logger=training.initialise" in err
    assert cots("--log-level", "warning", *run, f"output={tmp_path / 'b'}")[::2] == (0, "")


def test_pretrain_says_that_it_was_finished(cots, config, monkeypatch):
    monkeypatch.delenv("COTS_LOG_LEVEL")
    run = ("train", "pretrain", "--config", config)
    _, first, _ = cots(*run)
    status, again, err = cots(*run)
    assert status == 0
    assert "was finished before; its checkpoint is made anew" in err
    assert again == first


def test_a_folder_with_something_else_is_left_alone(cots, config, tiny_checkpoint, tmp_path):
    run = ("train", "pretrain", "--config", config)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine")
    status, _, err = cots(*run, f"output={tmp_path / 'mine'}")
    assert status == 2
    assert "holds README.md, which this run would write over; give another output" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["README.md"]
    assert cots(*run, f"output={config}")[0] == 2
    assert cots(*run, "epochs=1")[0] == 0
    status, _, err = cots(*run, "epochs=2")
    assert status == 2
    assert "(epochs 1 -> 2); give another output and start from it: init.image=checkpoint:" in err


def test_a_tokenizers_file_is_for_another_command(cots, config, tmp_path):
    status, _, err = cots(
        "train", "pretrain", "--config", REPOSITORY / "training/configs/tokenizer_mini.yaml"
    )
    assert status == 2
    assert "use `cots train tokenizer`" in err
    status, _, err = cots("train", "tokenizer", "--config", config)
    assert status == 2
    assert "use `cots train pretrain`" in err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("epoch=1", "unknown key epoch; did you mean epochs"),
        ("optimiser.lr=fast", "optimiser.lr: "),
        ("nonsense", "write key=value"),
        ("data.train=[nowhere.tar]", "nowhere.tar is not there"),
        ("batch_size=5", "4 pictures do not fill one batch of 5"),
        ("device=cuda:99", "device 'cuda:99' is not here"),
        ("init.text=random", "no tokenizer"),
    ],
)
def test_pretrain_refuses_bad_input_in_one_line(cots, config, override, says):
    status, out, err = cots("train", "pretrain", "--config", config, override)
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert says in err
    assert err.count("\n") == 1


def test_pretrain_refuses_a_missing_config(cots, tmp_path):
    status, _, err = cots("train", "pretrain", "--config", tmp_path / "no.yaml")
    assert status == 2
    assert "no.yaml; training/configs holds examples" in err
    status, _, err = cots("train", "pretrain")
    assert status == 2
    assert "--config" in err


def test_pretrain_fails_with_1_when_the_loss_explodes(cots, config):
    status, out, err = cots("train", "pretrain", "--config", config, "optimiser.lr=1e30")
    assert (status, out) == (1, "")
    assert re.search(r"^Error: .*not finite.*\n\Z", err, re.M)
    assert (config.parent / "run/failed").is_dir()


def test_finetune_starts_from_a_checkpoint(cots, config, tiny_checkpoint, tmp_path):
    status, _, err = cots("train", "finetune", "--config", config)
    assert status == 2
    assert "init names 'random' and 'checkpoint:" in err
    image = f"init.image=checkpoint:{tiny_checkpoint}"
    status, out, _ = cots("train", "finetune", "--config", config, image, "epochs=1")
    assert status == 0
    assert out.startswith(f"{tmp_path / 'run'}: ")


def test_pretrain_shows_the_pairs_that_the_filter_dropped(cots, config, tmp_path):
    page = tmp_path / "new" / "dropped.html"
    switches = ("objective.filter.enabled=true", "objective.filter.num_sigmas=-1")
    arguments = ("--config", config, *switches, "objective.instance.queue_length=2")
    status, out, err = cots("train", "pretrain", *arguments, "--report-filtered", page)
    assert (status, err) == (0, "")
    assert out.endswith(f"\n{page}: pairs that the filter dropped\n")
    assert re.search(r'<p dir="auto">a (red|blue|white|black) dog</p>', page.read_text())
    status, _, _ = cots(
        "train", "pretrain", *arguments, "--report-filtered", page, "--report-limit", 1
    )
    assert status == 0
    assert page.read_text().count("<li>") == 1


def test_pretrain_refuses_the_report_of_a_filter_that_is_off(cots, config, tmp_path):
    status, out, err = cots(
        "train", "pretrain", "--config", config, "--report-filtered", tmp_path / "page.html"
    )
    assert (status, out) == (2, "")
    assert "the filter is off" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
