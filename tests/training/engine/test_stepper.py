"""One optimiser step: each part as the paper says, in its order."""

import dataclasses
import math

import pytest
import torch

from cots_model.config import load_config
from cots_model.errors import CotsError, InputError
from cots_model.model import CotsModel
from training.batches import Batch, PairBatches
from training.config import AugmentConfig
from training.engine.hiding import Hider
from training.engine.stepper import Stepper
from training.engine.world import World
from training.errors import TrainingError
from training.filter import FilterResult
from training.losses import instance_loss, task_loss
from training.objective import Hidden, Objective
from training.seeds import mix_seeds
from training.token_loss import language_token_loss, vision_token_loss
from training.trainer import make_stepper as build_stepper


@pytest.fixture
def batches(examples, preprocess):
    made = PairBatches(examples, preprocess, AugmentConfig(), batch_size=8, seed=0)
    return [batch for number in range(3) for batch in made.epoch(number)]


def make_stepper(config, model, preprocess, steps_per_epoch: int = 4) -> Stepper:
    world = World(0, 1, torch.device("cpu"))
    objective = Objective(model, config.objective)
    hider = Hider(config.objective, model, preprocess, None)
    return Stepper(config, objective, hider, world, steps_per_epoch=steps_per_epoch)


@pytest.fixture
def stepper(configure, model, preprocess) -> Stepper:
    return make_stepper(configure("epochs=5"), model, preprocess)


def keys_of(stepper: Stepper, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    slow, batch = stepper.momentum.module, batch.to(torch.device("cpu"))
    with torch.no_grad():
        return slow.encode_image(batch.image), slow.encode_text(batch.tok_BL, batch.mask_BL)


def parameters_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_keys_of_the_batch_are_enqueued_after_its_loss(stepper, batches):
    """With empty queues there are no negatives, so the first loss is exactly zero."""
    image_key_BE, text_key_BE = keys_of(stepper, batches[0])
    assert stepper.run([batches[0]]).losses["total"] == 0.0
    queues = stepper.queues
    assert queues.filled_N.tolist() == [True] * 8 + [False] * 4
    torch.testing.assert_close(queues.image_NE[:8], image_key_BE, rtol=0, atol=1e-6)
    torch.testing.assert_close(queues.text_NE[:8], text_key_BE, rtol=0, atol=1e-6)
    assert torch.equal(queues.image_id_N[:8], batches[0].image_id_B)
    assert stepper.run([batches[1]]).losses["total"] > 0.0
    assert int(queues.pointer) == 4


def test_second_step_has_the_loss_of_its_parts(stepper, batches):
    stepper.run([batches[0]])
    batch = batches[1].to(torch.device("cpu"))
    slow = [
        slow.lerp(fast, 1 - 0.9)
        for slow, fast in zip(
            parameters_of(stepper.momentum.module),
            parameters_of(stepper.objective.model),
            strict=True,
        )
    ]
    image_NE, text_NE = stepper.queues.image_NE.clone(), stepper.queues.text_NE.clone()
    negative_BN = stepper.queues.filled_N & (stepper.queues.image_id_N != batch.image_id_B[:, None])
    online = stepper.objective.model.train()
    torch.manual_seed(mix_seeds(0, 1, 0))  # dropout
    online_image_BE = online.encode_image(batch.image)
    online_text_BE = online.encode_text(batch.tok_BL, batch.mask_BL)
    loss = stepper.run([batch])
    for ours, expected in zip(parameters_of(stepper.momentum.module), slow, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-7)
    keys = keys_of(stepper, batch)
    expected = instance_loss(
        online_image_BE, online_text_BE, *keys, image_NE, text_NE, negative_BN, temperature=0.05
    )
    assert loss.losses["total"] == pytest.approx(expected.total.item(), rel=1e-5, abs=1e-5)


WEIGHTS = {"instance": 2.0, "task": 0.5, "vision": 0.25, "language": 3.0}


@pytest.fixture
def full(configure, exact_yaml, preprocess, codes) -> Stepper:
    """All terms with unequal weights, and the filter; no dropout."""
    vision = f"objective.vision={{weight: {WEIGHTS['vision']}, tokenizer: '{codes}'}}"
    config = configure(
        vision,
        f"model={exact_yaml}",
        *(f"objective.{name}.weight={WEIGHTS[name]}" for name in WEIGHTS if name != "vision"),
        "objective.filter.enabled=true",
        "optimiser.clip_norm=1e9",
    )
    torch.manual_seed(0)
    model = CotsModel(load_config(config.model).model)
    world = World(0, 1, torch.device("cpu"))
    return build_stepper(config, model, preprocess, world, 4)


def drop_second(judged: FilterResult) -> FilterResult:
    keep_B = torch.ones_like(judged.keep_B)
    keep_B[1] = False
    return dataclasses.replace(judged, keep_B=keep_B)


def by_hand(stepper: Stepper, batch: Batch, hidden: Hidden, keep_B: torch.Tensor):
    """Every term by the functions of the losses, of the kept pairs alone."""
    objective, model, queues = stepper.objective, stepper.objective.model, stepper.queues
    image_BD, text_BD = model.image.feature(batch.image), model.text.feature(*words_of(batch))
    contrast = instance_loss(
        model.project_image(image_BD)[keep_B],
        model.project_text(text_BD)[keep_B],
        *(key_BE[keep_B] for key_BE in keys_of(stepper, batch)),
        queues.image_NE,
        queues.text_NE,
        queues.filled_N & (queues.image_id_N != batch.image_id_B[keep_B][:, None]),
        temperature=0.05,
    )
    head, token_D = objective.vision_head, objective.vision_head.mask_token_D
    h_BPD = model.image.masked_patches(batch.image, hidden.hidden_FP, token_D)[keep_B]
    codes = hidden.code_FP[keep_B], hidden.hidden_FP[keep_B]
    h_BLD = model.text(hidden.tok_BL, batch.mask_BL)[keep_B]
    labels, word_VW = hidden.label_BL[keep_B], model.text.word_embedding_VW
    return {
        "image_to_text": contrast.image_to_text,
        "text_to_image": contrast.text_to_image,
        "task": task_loss(contrast.i2t_BC, contrast.t2i_BC),
        "vision": vision_token_loss(head, h_BPD, text_BD[keep_B], *codes).loss,
        "language": language_token_loss(
            objective.language_head, h_BLD, image_BD[keep_B], labels, word_VW
        ).loss,
    }


def words_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.tok_BL, batch.mask_BL


def test_a_step_is_the_weighted_sum_of_all_terms_of_the_kept_pairs(full, batches, monkeypatch):
    """Loss and gradient; of 8 pairs the second is dropped."""
    for batch in batches[:3]:
        full.run([batch])
    batch, judge = batches[3], full.filter
    full.momentum.update(full.objective.model)
    monkeypatch.setattr(full.momentum, "update", lambda _online: None)
    monkeypatch.setattr(full, "filter", lambda *args, **keys: drop_second(judge(*args, **keys)))
    shown = batch.to(torch.device("cpu"))
    hidden = full.hider(batch, shown.image, seed=mix_seeds(0, 3), first_row=0)
    terms = by_hand(full, shown, hidden, torch.arange(8) != 1)
    weights = WEIGHTS | dict.fromkeys(("image_to_text", "text_to_image"), WEIGHTS["instance"])
    total = sum(weights[name] * term for name, term in terms.items())
    trained = [p for p in full.objective.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, trained, allow_unused=True)
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm().item()
    report = full.run([batch])
    assert report.kept == 7 / 8
    assert [row for _, row, _ in report.dropped] == [1]
    expected = {name: term.item() for name, term in terms.items()} | {"total": total.item()}
    assert report.losses == pytest.approx(expected, rel=1e-4)
    assert report.grad_norm == pytest.approx(norm, rel=1e-4)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)


def test_one_loss_that_is_not_finite_is_named_alone(full, batches):
    """The keys and all other losses are finite."""
    full.run([batches[0]])
    before = parameters_of(full.objective.model)
    with torch.no_grad():
        full.objective.language_head.bias[0] = torch.nan
    with pytest.raises(TrainingError, match=r"^language, total, the gradient not finite at step 1"):
        full.run([batches[1]])
    for now, then in zip(full.objective.model.parameters(), before, strict=True):
        assert torch.equal(now, then)
    assert full.step == 1


def test_a_gradient_that_is_not_finite_is_named_alone(full, batches):
    full.run([batches[0]])
    before = parameters_of(full.objective.model)
    bias = full.objective.model.image_projection.bias
    bias.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match=r"^the gradient not finite at step 1"):
        full.run([batches[1]])
    for now, then in zip(full.objective.model.parameters(), before, strict=True):
        assert torch.equal(now, then)
    assert int(full.queues.pointer) == 8


def test_rates_are_given_by_the_names_of_the_encoders(configure, model, preprocess):
    config = configure("optimiser.lr=1e-3", "optimiser.lr_scale={image_projection: 5}")
    stepper = make_stepper(config, model, preprocess)
    rates = {
        group["lr"]
        for group in stepper.optimiser.param_groups
        for parameter in group["params"]
        if any(parameter is p for p in model.image_projection.parameters())
    }
    assert rates == {5e-3}


def test_momentum_is_updated_once_per_step(stepper, batches):
    start = parameters_of(stepper.objective.model)
    stepper.run([batches[0]])
    for slow, initial in zip(parameters_of(stepper.momentum.module), start, strict=True):
        assert torch.equal(slow, initial)  # nothing to follow yet
    for batch in batches[1:4]:
        before = parameters_of(stepper.momentum.module)
        online = parameters_of(stepper.objective.model)
        stepper.run([batch])
        after = parameters_of(stepper.momentum.module)
        for was, fast, now in zip(before, online, after, strict=True):
            torch.testing.assert_close(now, 0.9 * was + 0.1 * fast, rtol=0, atol=1e-6)


def test_step_trains_every_parameter_and_no_momentum_one(stepper, batches):
    start = {name: p.detach().clone() for name, p in stepper.objective.model.named_parameters()}
    for batch in batches[:3]:
        stepper.run([batch])
    unused = {"text.trunk.embeddings.token_type_embeddings.weight"}
    for name, parameter in stepper.objective.model.named_parameters():
        assert name in unused or not torch.equal(parameter, start[name]), name
    assert all(parameter.grad is None for parameter in stepper.momentum.module.parameters())


def test_step_follows_the_schedule(configure, model, preprocess, batches):
    config = configure("optimiser.warmup_steps=2", "optimiser.constant_epochs=1", "epochs=2")
    stepper = make_stepper(config, model, preprocess, steps_per_epoch=3)
    rates = []
    for batch in batches[:6]:
        report = stepper.run([batch])
        rates.append(stepper.optimiser.param_groups[0]["lr"] / 1e-3)
        assert report.figures()["optimiser/lr"] == pytest.approx(rates[-1] * 1e-3)
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 2 / 3, 1 / 3])


def test_bf16_keeps_loss_queues_and_averages_in_float32(configure, model, preprocess, batches):
    stepper = make_stepper(configure("precision=bf16"), model, preprocess)
    for batch in batches[:3]:
        loss = stepper.run([batch])
    assert math.isfinite(loss.losses["total"])
    assert stepper.queues.image_NE.dtype == torch.float32
    dtypes = {p.dtype for p in (*stepper.momentum.module.parameters(), *model.parameters())}
    assert dtypes == {torch.float32}
    norm_N = stepper.queues.image_NE.norm(dim=1)
    torch.testing.assert_close(norm_N, torch.ones(12), rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_names_the_step(stepper, batches):
    stepper.run([batches[0]])
    with torch.no_grad():
        stepper.objective.model.text_projection.bias[0] = torch.nan
    before = stepper.queues.image_id_N.clone()
    with pytest.raises(TrainingError, match="of step 1 are not finite"):
        stepper.run([batches[1]])
    assert torch.equal(stepper.queues.image_id_N, before)
    assert not issubclass(TrainingError, InputError)
    assert issubclass(TrainingError, CotsError)
