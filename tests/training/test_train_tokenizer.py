"""Training an image tokenizer: it learns, it says when it has collapsed, it leaves a folder."""

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cots_model.config import load_config
from cots_model.errors import ConfigError, InputError
from cots_model.preprocess import Preprocess
from cots_model.testing import make_tokenizer
from tests.conftest import REPOSITORY
from tests.training.conftest import PAIRS, assert_equal_nested, write_folder
from training.data import read_examples
from training.engine.states import STATES, StateFolder
from training.engine.stopping import StoppedError
from training.errors import TrainingError
from training.tokenizer_config import (
    CollapseConfig,
    PictureConfig,
    RelaxationConfig,
    TokenizerTrainConfig,
    load_tokenizer_config,
)
from training.tokenizer_data import PictureBatches, to_pixels, whole_pictures, write_comparison
from training.tokenizer_report import CodebookCollapseError, EpochReport, check_collapse
from training.tokenizer_source import load_dvae
from training.tokenizer_trainer import TokenizerTrainer, annealed
from training.train_tokenizer import train_tokenizer

Configure = Callable[..., TokenizerTrainConfig]
RUN = Path("runs/tokens")
REPORT = EpochReport(
    epoch=3,
    reconstruction=0.01,
    kl=2.0,
    temperature=0.1,
    usage=0.5,
    perplexity=20.0,
    held_out=None,
    wall_s=1.0,
)


@pytest.fixture
def configure_tokenizer(tmp_path: Path, shard: Path) -> Configure:
    """A run on 32 pictures of two colours each: 4 x 4 tokens of 32-pixel pictures."""

    def make(*overrides: str, **changes: Any) -> TokenizerTrainConfig:
        values: dict[str, Any] = {
            "model": {
                "vocab_size": 16,
                "grid": 4,
                "widths": [16, 16],
                "num_blocks": 1,
                "code_dim": 8,
            },
            "data": {"train": [str(shard)]},
            "picture": {"image_size": 32},
            "relaxation": {"anneal_epochs": 10},
            "optimiser": {"lr": 0.003, "constant_epochs": 100},
            "collapse": {"warmup_epochs": 1, "min_perplexity": 1.5, "min_usage": 0.1},
            "epochs": 2,
            "batch_size": 8,
            "device": "cpu",
            "output": str(tmp_path / "run"),
        }
        path = tmp_path / "tokenizer.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return load_tokenizer_config(path, overrides)

    return make


def interrupt(*_args: object) -> None:
    raise KeyboardInterrupt


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns_pictures_of_six_colours(configure_tokenizer, tmp_path):
    """Untrained, the error is the pictures' own variance; six colours need six codes or so."""
    balanced = "relaxation.balance_weight=0.01"  # without it some seeds find only two codes
    config = configure_tokenizer("epochs=60", "relaxation.anneal_epochs=40", balanced)
    result = train_tokenizer(config)
    log = lines(tmp_path / "run")
    assert [line["epoch"] for line in log] == list(range(60))
    assert log[0]["reconstruction"] > 0.1
    assert result.last.reconstruction < 0.2 * log[0]["reconstruction"]
    assert result.last.perplexity > 6
    assert result.last.usage >= 6 / 16
    assert result.last.temperature == config.relaxation.temperature_end


def test_what_is_written_is_what_was_trained(configure_tokenizer, shard, tmp_path):
    result = train_tokenizer(configure_tokenizer(f"data.evaluate=['{shard}']", "num_shown=3"))
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [
        "config.json",
        "log.jsonl",
        "model.safetensors",
        "reconstructions.png",
        "run.yaml",
        "states",
    ]
    dvae = load_dvae(result.folder)
    [original_BCHW] = whole_pictures(
        read_examples([str(shard)]), PictureConfig(image_size=32), batch_size=32
    )
    original_BCHW = dvae.fit(original_BCHW)
    error = (dvae.paint(original_BCHW) - original_BCHW).square().mean().item()
    assert result.last.held_out == pytest.approx(error, rel=1e-4)
    assert lines(result.folder)[-1]["held_out"] == result.last.held_out
    with Image.open(result.folder / "reconstructions.png") as sheet:
        assert sheet.size == (3 * 16 + 2 * 2, 2 * 16 + 2)


def test_equal_seeds_give_equal_tokenizers(configure_tokenizer, tmp_path):
    first = train_tokenizer(configure_tokenizer())
    again = train_tokenizer(configure_tokenizer(f"output={tmp_path / 'again'}"))
    other = train_tokenizer(configure_tokenizer("seed=1", f"output={tmp_path / 'other'}"))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len(lines(tmp_path / "run")) == 2


def tokenizer_state(folder: Path) -> dict[str, Any]:
    step, state = StateFolder(folder / STATES).load_latest()
    return {"at": step, **{key: state[key] for key in ("trainer", "data")}}


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_stopped_at_any_step_it_ends_with_the_same_tokenizer(
    configure_tokenizer, tmp_path, monkeypatch, step
):
    """Four steps an epoch: inside the first, at its end, and inside the second."""
    whole = train_tokenizer(configure_tokenizer(f"output={tmp_path / 'whole'}"))
    train_step = TokenizerTrainer.train_step

    def stopped(self, pixels_BCHW):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, pixels_BCHW)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTrainer, "train_step", stopped)
        with pytest.raises(StoppedError, match=f"stopped after step {step};"):
            train_tokenizer(configure_tokenizer())
    resumed = train_tokenizer(configure_tokenizer())
    assert resumed.fingerprint == whole.fingerprint
    assert_equal_nested(tokenizer_state(resumed.folder), tokenizer_state(whole.folder))
    for ours, theirs in zip(lines(resumed.folder), lines(whole.folder), strict=True):
        assert ours | {"wall_s": 0} == theirs | {"wall_s": 0}


def test_killed_while_an_epoch_ends_its_line_is_there_once(
    configure_tokenizer, tmp_path, monkeypatch
):
    whole = train_tokenizer(configure_tokenizer(f"output={tmp_path / 'whole'}"))
    with monkeypatch.context() as patch:
        patch.setattr("training.train_tokenizer.save_dvae", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(configure_tokenizer("save_every=3"))
    assert train_tokenizer(configure_tokenizer("save_every=3")).fingerprint == whole.fingerprint
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [0, 1]


def test_a_finished_run_is_not_trained_again(configure_tokenizer, monkeypatch):
    result = train_tokenizer(configure_tokenizer())
    (result.folder / "model.safetensors").unlink()
    monkeypatch.setattr(TokenizerTrainer, "train_step", interrupt)
    assert train_tokenizer(configure_tokenizer()) == result
    assert load_dvae(result.folder).vocab_size == 16
    assert len(lines(result.folder)) == 2


def test_other_values_and_other_pictures_are_refused(configure_tokenizer, tmp_path):
    train_tokenizer(configure_tokenizer())
    with pytest.raises(ConfigError, match=r"\(epochs 2 -> 3\); give another output, or remove"):
        train_tokenizer(configure_tokenizer("epochs=3"))
    write_folder(tmp_path / "other", PAIRS[:8])
    with pytest.raises(ConfigError, match="stopped with other data"):
        train_tokenizer(configure_tokenizer(f"data.train=['{tmp_path / 'other'}']"))


def test_a_forced_collapse_stops_the_run(configure_tokenizer, tmp_path):
    """A heavy KL weight makes every token's distribution uniform: the codes say nothing."""
    config = configure_tokenizer(
        "relaxation.kl_weight=100",
        "relaxation.kl_weight_end=100",
        "epochs=30",
    )
    with pytest.raises(CodebookCollapseError, match=r"lower relaxation\.kl_weight") as caught:
        train_tokenizer(config)
    assert "(min_kl 0.1)" in str(caught.value)
    log = lines(tmp_path / "run")
    assert log[-1]["epoch"] == 1  # the first after warm-up
    assert log[-1]["kl"] < 0.1
    assert (tmp_path / "run/reconstructions.png").is_file()


def test_a_rate_that_is_too_high_is_a_collapse_too(configure_tokenizer):
    with pytest.raises(CodebookCollapseError, match=r"lower optimiser\.lr"):
        train_tokenizer(configure_tokenizer("optimiser.lr=10", "epochs=10"))


def test_collapse_is_below_either_floor_after_warm_up():
    floors = CollapseConfig(warmup_epochs=3, min_perplexity=16, min_usage=0.3)
    check_collapse(floors, REPORT, 64, RUN)
    check_collapse(floors, replace(REPORT, epoch=2, perplexity=1.0, usage=0.01), 64, RUN)
    check_collapse(floors, replace(REPORT, perplexity=16.0, usage=0.3), 64, RUN)
    for bad in ({"perplexity": 15.9}, {"usage": 0.29}, {"kl": 0.09}):
        with pytest.raises(CodebookCollapseError, match="the codebook collapsed: after epoch 3"):
            check_collapse(floors, replace(REPORT, **bad), 64, RUN)


def test_collapse_says_what_to_change():
    floors = CollapseConfig(warmup_epochs=0)
    few, none = replace(REPORT, perplexity=2.0), replace(REPORT, kl=0.01)
    with pytest.raises(
        CodebookCollapseError,
        match=r"perplexity is 2\.0 of 64 codes.*raise relax.* or remove runs/tokens",
    ):
        check_collapse(floors, few, 64, RUN)
    with pytest.raises(CodebookCollapseError, match=r"50\.0% of them are used.*say nothing"):
        check_collapse(floors, none, 64, RUN)


def test_a_loss_that_is_not_finite_names_its_step(configure_tokenizer):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; lower the lr"):
        train_tokenizer(configure_tokenizer("optimiser.lr=1e30", "optimiser.clip_norm=1e30"))


def test_annealing_is_half_a_cosine():
    config = RelaxationConfig(
        temperature_start=2, temperature_end=1, kl_weight=0, kl_weight_end=0.4
    )
    for share in (0.0, 0.25, 0.5, 1.0):
        rest = 0.5 + 0.5 * math.cos(share * math.pi)
        assert annealed(config, share) == pytest.approx((1 + rest, 0.4 * (1 - rest)))


def test_the_annealed_kl_of_each_token_is_trained_with_and_logged(configure_tokenizer, tmp_path):
    """As the weight grows, tokens become less certain of their codes, and pictures are worse."""
    annealing = ["epochs=30", "relaxation.anneal_epochs=20", "collapse.warmup_epochs=30"]
    weights = ["relaxation.kl_weight=0.001", "relaxation.kl_weight_end=0.5"]
    result = train_tokenizer(configure_tokenizer(*annealing, *weights))
    log = lines(tmp_path / "run")
    for line in log:
        last_step = 4 * line["epoch"] + 3  # of four an epoch
        rest = (1 + math.cos(math.pi * min(1.0, last_step / (20 * 4)))) / 2
        assert line["kl_weight"] == pytest.approx(0.5 + rest * (0.001 - 0.5))
    assert log[-1]["kl_weight"] == 0.5
    assert all(0 < line["kl"] < math.log(16) for line in log)
    without = train_tokenizer(configure_tokenizer(*annealing, f"output={tmp_path / 'without'}"))
    assert {line["kl_weight"] for line in lines(without.folder)} == {0.0}
    assert result.last.kl < 0.5 * without.last.kl
    assert result.last.reconstruction > without.last.reconstruction


def test_a_state_of_before_the_weight_was_logged_goes_on(configure_tokenizer, tmp_path):
    train_tokenizer(configure_tokenizer())
    states = StateFolder(tmp_path / "run" / STATES)
    step, state = states.load_latest()
    del state["last"]["kl_weight"], state["epoch"]["kl_weight"]
    states.save(step + 1, state)
    assert train_tokenizer(configure_tokenizer()).last.kl_weight == 0.0


def test_every_epoch_is_every_picture_once(examples):
    config = PictureConfig(image_size=8, min_area=1, flip=False)
    batches = PictureBatches(examples, config, batch_size=8, seed=0)
    epoch_BCHW = torch.cat(list(batches.epoch(0)))
    [all_BCHW] = whole_pictures(examples, config, batch_size=32)
    order = [int((all_BCHW - picture).abs().sum((1, 2, 3)).argmin()) for picture in epoch_BCHW]
    assert sorted(order) == list(range(32)) != order
    assert torch.equal(epoch_BCHW, torch.cat(list(batches.epoch(0))))
    assert not torch.equal(epoch_BCHW, torch.cat(list(batches.epoch(1))))


def test_workers_change_nothing(examples):
    config = PictureConfig(image_size=8)
    here = PictureBatches(examples, config, batch_size=8, seed=0)
    there = PictureBatches(examples, config, batch_size=8, seed=0, num_workers=2)
    assert torch.equal(torch.cat(list(here.epoch(1))), torch.cat(list(there.epoch(1))))


def test_broken_pictures_are_left_out_up_to_a_share(tmp_path, caplog):
    write_folder(tmp_path / "photos", PAIRS[:8])
    (tmp_path / "photos/03.png").write_bytes(b"no picture")
    examples = read_examples([str(tmp_path / "photos")])
    config = PictureConfig(image_size=8)
    batches = PictureBatches(examples, config, batch_size=4, seed=0, max_broken_share=0.2)
    assert sum(len(pixels_BCHW) for pixels_BCHW in batches.epoch(0)) == 7
    assert "picture 03" in caplog.text
    whole = whole_pictures(examples, config, batch_size=3, max_broken_share=0.2)
    assert [len(pixels_BCHW) for pixels_BCHW in whole] == [3, 2, 2]
    strict = PictureBatches(examples, config, batch_size=4, seed=0, max_broken_share=0.1)
    for pictures in (strict.epoch(0), whole_pictures(examples, config, batch_size=3)):
        with pytest.raises(InputError, match="1 of 8 pictures are broken"):
            list(pictures)


def test_the_balance_weight_brings_codes_into_use(configure_tokenizer, tmp_path):
    runs = [
        train_tokenizer(
            configure_tokenizer(
                f"relaxation.balance_weight={weight}",
                "model.vocab_size=64",
                "collapse={min_perplexity: 1, min_usage: 0, min_kl: 0}",
                "epochs=15",
                f"output={tmp_path / str(weight)}",
            )
        )
        for weight in (0, 0.1)
    ]
    assert runs[1].last.perplexity > 1.5 * runs[0].last.perplexity


def test_views_are_cropped_and_mirrored(tmp_path):
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (64, 1))] * 3, -1)).save(tmp_path / "ramp.png")
    (tmp_path / "ramp.txt").write_text("a ramp")
    examples = read_examples([str(tmp_path)])
    batches = PictureBatches(
        examples, PictureConfig(image_size=16, min_area=0.3), batch_size=1, seed=0
    )
    views = [next(batches.epoch(number))[0, 0, 8] for number in range(20)]
    mirrored = [bool(row[0] > row[-1]) for row in views]
    assert 3 < sum(mirrored) < 17
    assert min(float((row[-1] - row[0]).abs()) for row in views) < 0.7  # a crop spans less


def test_pixels_are_those_the_model_sees():
    img = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    for resize in ("squash", "crop"):
        shipped = load_config("cots-mini").preprocess
        preprocess = Preprocess(
            shipped.model_copy(update={"resize": resize, "image_size": 32}), make_tokenizer()
        )
        mean, std = (torch.tensor(v)[:, None, None] for v in (shipped.mean, shipped.std))
        pixels_CHW = to_pixels(img, PictureConfig(image_size=32, resize=resize))
        torch.testing.assert_close(preprocess.image(img), (pixels_CHW - mean) / std)


def test_comparison_shows_pictures_above_what_became_of_them(tmp_path):
    original_BCHW, painted_BCHW = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 1.7)
    original_BCHW[1, 0] = 0.5
    write_comparison(tmp_path / "x.png", original_BCHW, painted_BCHW)
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.getpixel((0, 0)) == (0, 0, 0)
        assert sheet.getpixel((6, 3)) == (128, 0, 0)
        assert sheet.getpixel((6, 6)) == (255, 255, 255)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("epoch=1", "unknown key epoch; did you mean epochs"),
        ("picture.image_size=15", "picture.image_size 15 is less than the encoder's input of 16"),
        ("collapse.min_perplexity=16", r"less than model\.vocab_size"),
        ("relaxation.temperature_end=0", r"relaxation\.temperature_end: "),
        ("relaxation.kl_weight=-1", r"relaxation\.kl_weight: "),
        ("data.train=[]", r"data\.train: "),
    ],
)
def test_bad_configurations_are_refused(configure_tokenizer, override, says):
    with pytest.raises(ConfigError, match=says):
        configure_tokenizer(override)


def test_too_few_pictures_are_refused(configure_tokenizer):
    with pytest.raises(InputError, match="32 pictures do not fill one batch of 33"):
        train_tokenizer(configure_tokenizer("batch_size=33"))


def test_shipped_run_makes_the_bundled_towers_tokens():
    config = load_tokenizer_config(REPOSITORY / "training/configs/tokenizer_mini.yaml")
    shipped = load_config("cots-mini")
    patch = 14
    assert f"patch{patch}" in shipped.model.image.arch
    assert config.model.grid == shipped.model.image.side // patch
    assert config.picture.image_size == shipped.preprocess.image_size
    assert config.picture.resize == shipped.preprocess.resize
