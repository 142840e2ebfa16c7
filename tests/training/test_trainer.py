"""The training loop: each step as the paper says, and a tiny run that learns."""

import json
import shutil
import time

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from cots_model.checkpoint import CONFIG_FILE
from cots_model.encoder import Encoder
from cots_model.errors import InputError
from tests.training.conftest import write_folder
from training.batches import PairBatches
from training.engine.world import World
from training.evaluate import embed, format_metrics
from training.trainer import make_batches, make_model, make_stepper, train


def test_hidden_words_start_from_berts_own_head(configure, bert, tmp_path):
    folder = tmp_path / "masked"
    shutil.copytree(bert, folder)
    masked = BertForMaskedLM(BertConfig.from_pretrained(bert))
    torch.nn.init.constant_(masked.cls.predictions.bias, 7.0)
    masked.save_pretrained(folder)
    config = configure("objective.language.weight=1", f"init.text={folder}")
    model, preprocess = make_model(config)
    stepper = make_stepper(config, model, preprocess, World(0, 1, torch.device("cpu")), 4)
    head, predictions = stepper.objective.language_head, masked.cls.predictions
    assert torch.equal(head.bias, predictions.bias)
    assert torch.equal(head.dense.weight, predictions.transform.dense.weight)


def test_the_time_of_a_run_has_the_waiting_for_data(configure, monkeypatch):
    epoch = PairBatches.epoch

    def slow(self, number, state=None):
        for batch in epoch(self, number, state):
            time.sleep(0.1)
            yield batch

    monkeypatch.setattr(PairBatches, "epoch", slow)
    config = configure("epochs=1")
    assert train(config).wall_s > 4 * 0.1
    lines = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    assert [line["speed/wait_s"] >= 0.1 for line in lines] == [True] * 4


@pytest.mark.parametrize("clip_norm", [0.01, 1e6])
def test_the_gradient_is_clipped_to_the_norm_that_is_configured(configure, examples, clip_norm):
    """With an eps far above the gradient, AdamW's first step is lr / eps times the gradient."""
    config = configure(
        "objective.language.weight=1",
        optimiser={"lr": 1e3, "eps": 1e3, "weight_decay": 0, "clip_norm": clip_norm},
    )
    world = World(0, 1, torch.device("cpu"))
    model, preprocess = make_model(config)
    batches = make_batches(config, examples, None, None, preprocess, world)
    stepper = make_stepper(config, model, preprocess, world, len(batches))
    weights = list(stepper.objective.parameters())
    before = [weight.detach().clone() for weight in weights]
    report = stepper.run([next(batches.epoch(0))])
    moved = (
        sum(float((w.detach() - b).square().sum()) for w, b in zip(weights, before, strict=True))
        ** 0.5
    )
    assert report.grad_norm > 0.1  # as it is without
    assert moved == pytest.approx(min(report.grad_norm, clip_norm), rel=0.01)


@pytest.mark.slow
def test_a_tiny_run_learns(configure, shard, examples):
    """32 pictures of two colours: chance is 3 % for the right one first."""
    config = configure(
        "epochs=60", "evaluate_every=60", f"data.evaluate=['{shard}']", "notes=Made by a test."
    )
    start = time.monotonic()
    result = train(config)
    assert 0 < result.wall_s < time.monotonic() - start
    folder = config.output
    assert result.checkpoint == folder
    encoder = Encoder.load(folder, device="cpu")
    assert encoder.fingerprint == result.fingerprint
    assert encoder.name == "tiny-run"
    assert embed(encoder, examples).metrics() == result.metrics
    assert result.metrics.text_to_image.r1 > 30
    assert result.metrics.text_to_image.r5 > 80
    assert result.metrics.image_to_text.r1 > 30
    assert result.metrics.text_to_image.num_queries == 64

    card = (folder / "README.md").read_text()
    side = result.metrics.text_to_image
    assert f"| text to image | {side.r1:.1f} | {side.r5:.1f} | {side.r10:.1f} |" in card
    assert "Made by a test." in card
    assert "240, each of 8 pairs" in card
    assert "32 pictures, of which an epoch takes 32" in card

    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log[-1] == {"step": 239} | log[-1]
    assert log[-1]["text_to_image/r1"] == side.r1
    losses = [line["loss/total"] for line in log if "loss/total" in line]
    assert len(losses) == 240
    assert sum(losses[-12:]) < 0.5 * sum(losses[4:16])


def test_the_same_seed_gives_the_same_checkpoint(configure, tmp_path):
    prints = [
        train(configure(*changes, f"output={tmp_path / str(number)}")).fingerprint
        for number, changes in enumerate(([], [], ["seed=1"]))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_scoring_does_not_change_the_training(configure, shard, tmp_path):
    plain = train(configure(f"output={tmp_path / 'a'}"))
    scored = train(configure(f"output={tmp_path / 'b'}", f"data.evaluate=['{shard}']"))
    assert plain.metrics is None
    assert scored.metrics is not None
    assert scored.fingerprint == plain.fingerprint
    assert "Not scored." in (tmp_path / "a" / "README.md").read_text()


def test_a_frozen_image_tower_stays_and_its_features_are_kept(configure, tmp_path):
    photos = write_folder(tmp_path / "photos", [("red", "blue")] * 8, side=64)
    config = configure(f"data.train=['{photos}']", "freeze_image=true", "batch_size=4", "epochs=1")
    train(config)
    (cache,) = config.data.cache_dir.iterdir()
    stamp = cache.stat().st_mtime_ns
    first = Encoder.load(config.output, device="cpu").model
    output = str(tmp_path / "second")
    train(configure(**{**config.model_dump(mode="json"), "epochs": 2, "output": output}))
    second = Encoder.load(output, device="cpu").model
    assert [path.name for path in config.data.cache_dir.iterdir()] == [cache.name]
    assert cache.stat().st_mtime_ns == stamp
    for name, value in first.image.state_dict().items():
        assert torch.equal(value, second.image.state_dict()[name]), name
    weights = [m.image_projection.weight for m in (first, second)]
    assert not torch.equal(*weights)  # not frozen
    card = (config.output / "README.md").read_text()
    assert "after embedding with the frozen image tower" in card


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model=cots-huge", "'cots-huge'"),
        ("batch_size=33", "32 pictures do not fill one batch of 33"),
        ("data.train=[nowhere.tar]", r"nowhere\.tar"),
        ("init.text=random", "no tokenizer"),
        ("init.text=checkpoint:nowhere", "no checkpoint 'nowhere'"),
        ("device=tpu", "unknown device 'tpu'"),
        ("optimiser.lr_scale={imag3: 2}", "imag3"),
    ],
)
def test_a_bad_run_is_refused_before_it_writes(configure, override, says):
    config = configure(override)
    with pytest.raises(InputError, match=says):
        train(config)
    assert not (config.output / CONFIG_FILE).exists()


def test_format_metrics_is_a_table(examples, tiny_checkpoint):
    metrics = embed(Encoder.load(tiny_checkpoint, device="cpu"), examples, batch_size=5).metrics()
    heading, t2i, i2t = format_metrics(metrics).splitlines()
    assert heading.split() == ["R@1", "R@5", "R@10", "MedR", "queries"]
    side = metrics.text_to_image
    assert t2i.split() == [
        "text",
        "->",
        "image",
        f"{side.r1:.2f}",
        f"{side.r5:.2f}",
        f"{side.r10:.2f}",
        f"{side.median_rank:.1f}",
        "64",
    ]
    assert i2t.split()[:3] == ["image", "->", "text"]
    assert len(heading) == len(t2i) == len(i2t)
