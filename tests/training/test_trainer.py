"""The training loop: each step as the paper says, and a tiny run that learns."""

import json
import time

import pytest
import torch

from cots_model.checkpoint import CONFIG_FILE
from cots_model.encoder import Encoder
from cots_model.errors import CotsError, InputError
from tests.training.conftest import write_folder
from training.batches import Batch, PairBatches
from training.config import AugmentConfig
from training.errors import TrainingError
from training.evaluate import evaluate, format_metrics
from training.losses import instance_loss
from training.trainer import Trainer, train


@pytest.fixture
def batches(examples, preprocess):
    made = PairBatches(examples, preprocess, AugmentConfig(), batch_size=8, seed=0)
    return [batch for number in range(3) for batch in made.epoch(number)]


@pytest.fixture
def trainer(configure, model) -> Trainer:
    return Trainer(configure("epochs=5"), model, steps_per_epoch=4)


def keys_of(trainer: Trainer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    slow = trainer.momentum.module
    with torch.no_grad():
        return slow.encode_image(batch.image), slow.encode_text(batch.tok_BL, batch.mask_BL)


def parameters_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_keys_of_the_batch_are_enqueued_after_its_loss(trainer, batches):
    """With empty queues there are no negatives, so the first loss is exactly zero."""
    image_key_BE, text_key_BE = keys_of(trainer, batches[0])
    assert trainer.train_step(batches[0]).total.item() == 0.0
    queues = trainer.queues
    assert queues.filled_N.tolist() == [True] * 8 + [False] * 4
    torch.testing.assert_close(queues.image_NE[:8], image_key_BE, rtol=0, atol=1e-6)
    torch.testing.assert_close(queues.text_NE[:8], text_key_BE, rtol=0, atol=1e-6)
    assert torch.equal(queues.image_id_N[:8], batches[0].image_id_B)
    assert trainer.train_step(batches[1]).total.item() > 0.0
    assert int(queues.pointer) == 4


def test_second_step_has_the_loss_of_its_parts(trainer, batches):
    trainer.train_step(batches[0])
    batch = batches[1]
    slow = [
        slow.lerp(fast, 1 - 0.9)
        for slow, fast in zip(
            parameters_of(trainer.momentum.module), parameters_of(trainer.model), strict=True
        )
    ]
    image_NE, text_NE = trainer.queues.image_NE.clone(), trainer.queues.text_NE.clone()
    negative_BN = trainer.queues.filled_N & (trainer.queues.image_id_N != batch.image_id_B[:, None])
    online = trainer.model.train()
    torch.manual_seed(7)  # dropout
    online_image_BE = online.encode_image(batch.image)
    online_text_BE = online.encode_text(batch.tok_BL, batch.mask_BL)
    torch.manual_seed(7)
    loss = trainer.train_step(batch)
    for ours, expected in zip(parameters_of(trainer.momentum.module), slow, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-7)
    keys = keys_of(trainer, batch)
    expected = instance_loss(
        online_image_BE, online_text_BE, *keys, image_NE, text_NE, negative_BN, temperature=0.05
    )
    torch.testing.assert_close(loss.total, expected.total, rtol=1e-5, atol=1e-5)


def test_momentum_is_updated_once_per_step(trainer, batches):
    start = parameters_of(trainer.model)
    trainer.train_step(batches[0])
    for slow, initial in zip(parameters_of(trainer.momentum.module), start, strict=True):
        assert torch.equal(slow, initial)  # nothing to follow yet
    for batch in batches[1:4]:
        before = parameters_of(trainer.momentum.module)
        online = parameters_of(trainer.model)
        trainer.train_step(batch)
        after = parameters_of(trainer.momentum.module)
        for was, fast, now in zip(before, online, after, strict=True):
            torch.testing.assert_close(now, 0.9 * was + 0.1 * fast, rtol=0, atol=1e-6)


def test_step_trains_every_parameter_and_no_momentum_one(trainer, batches):
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for batch in batches[:3]:
        trainer.train_step(batch)
    unused = {"text.trunk.embeddings.token_type_embeddings.weight"}
    for name, parameter in trainer.model.named_parameters():
        assert name in unused or not torch.equal(parameter, start[name]), name
    assert all(parameter.grad is None for parameter in trainer.momentum.module.parameters())


def test_step_follows_the_schedule(configure, model, batches):
    config = configure("optimiser.warmup_steps=2", "optimiser.constant_epochs=1", "epochs=2")
    trainer = Trainer(config, model, steps_per_epoch=3)
    rates = []
    for batch in batches[:6]:
        trainer.train_step(batch)
        rates.append(trainer.optimiser.param_groups[0]["lr"] / 1e-3)
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 2 / 3, 1 / 3])


def test_bf16_keeps_loss_queues_and_averages_in_float32(configure, model, batches):
    trainer = Trainer(configure("precision=bf16"), model, steps_per_epoch=4)
    for batch in batches[:3]:
        loss = trainer.train_step(batch)
    assert loss.total.dtype == torch.float32
    assert trainer.queues.image_NE.dtype == torch.float32
    dtypes = {p.dtype for p in (*trainer.momentum.module.parameters(), *model.parameters())}
    assert dtypes == {torch.float32}
    norm_N = trainer.queues.image_NE.norm(dim=1)
    torch.testing.assert_close(norm_N, torch.ones(12), rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_names_the_step(trainer, batches):
    trainer.train_step(batches[0])
    with torch.no_grad():
        trainer.model.text_projection.bias[0] = torch.nan
    before = trainer.queues.image_id_N.clone()
    with pytest.raises(TrainingError, match="the loss is nan at step 1; lower the lr"):
        trainer.train_step(batches[1])
    assert torch.equal(trainer.queues.image_id_N, before)
    assert not issubclass(TrainingError, InputError)
    assert issubclass(TrainingError, CotsError)


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
    assert evaluate(encoder, examples) == result.metrics
    assert result.metrics.text_to_image.r1 > 30
    assert result.metrics.text_to_image.r5 > 80
    assert result.metrics.image_to_text.r1 > 30
    assert result.metrics.text_to_image.num_queries == 64

    card = (folder / "README.md").read_text()
    side = result.metrics.text_to_image
    assert f"| text to image | {side.r1:.1f} | {side.r5:.1f} | {side.r10:.1f} |" in card
    assert "Made by a test." in card
    assert "240 of 8 pairs" in card
    assert "32 pictures with captions" in card

    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == list(range(60))
    assert [line["metrics"] is None for line in log] == [True] * 59 + [False]
    assert log[-1]["metrics"]["text_to_image"]["r1"] == side.r1
    losses = [line["loss"] for line in log]
    assert sum(losses[-3:]) < 0.5 * sum(losses[1:4])


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


def test_a_run_starts_its_log_afresh(configure):
    for epochs in (3, 2):
        config = configure(f"epochs={epochs}")
        train(config)
        assert len((config.output / "log.jsonl").read_text().splitlines()) == epochs


def test_a_frozen_image_tower_stays_and_its_features_are_kept(configure, tmp_path):
    photos = write_folder(tmp_path / "photos", [("red", "blue")] * 8, side=64)
    config = configure(f"data.train=['{photos}']", "freeze_image=true", "batch_size=4", "epochs=1")
    train(config)
    (cache,) = config.data.cache_dir.iterdir()
    stamp = cache.stat().st_mtime_ns
    first = Encoder.load(config.output, device="cpu").model
    train(configure(**{**config.model_dump(mode="json"), "epochs": 2}))
    second = Encoder.load(config.output, device="cpu").model
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
    metrics = evaluate(Encoder.load(tiny_checkpoint, device="cpu"), examples, batch_size=5)
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
