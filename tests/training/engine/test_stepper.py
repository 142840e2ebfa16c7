"""One optimiser step: each part as the paper says, in its order."""

import math

import pytest
import torch

from cots_model.errors import CotsError, InputError
from training.batches import Batch, PairBatches
from training.config import AugmentConfig
from training.engine.hiding import Hider
from training.engine.stepper import Stepper
from training.engine.world import World
from training.errors import TrainingError
from training.losses import instance_loss
from training.objective import Objective
from training.seeds import mix_seeds


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
        stepper.run([batch])
        rates.append(stepper.optimiser.param_groups[0]["lr"] / 1e-3)
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
